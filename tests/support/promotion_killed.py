"""``python -m tests.support.promotion_killed``: promotions of version 9, each killed before its write number STEP.

Reads lines ``BASE STAGING STEP`` and answers each with the exit status. A promotion runs in a process of its own that
is forked from this one, which has the client's modules loaded and no thread. Writes are the calls that change something
in the store or on the local disk.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3fs.core import S3FileSystem

from replay.publishing import object_target  # noqa: F401
from replay.publishing.local_target import LocalTarget
from replay.publishing.place import RemotePlace, open_place
from replay.publishing.promotion import Area
from replay.refreshing.place import Version

WRITES = ("put_", "copy_", "delete_", "upload_", "create_", "complete_")
CALLS = ("mkdir", "replace", "unlink", "rmdir")


def place_of(base: str, staging: str) -> RemotePlace:
    """The place of these URLs; of two directories as if they could not be renamed."""
    if not base.startswith("file://"):
        place = open_place(base, staging)
        assert isinstance(place, RemotePlace)
        return place
    served, staged = Path(base.removeprefix("file://")), Path(staging.removeprefix("file://"))
    if served.parent == staged.parent:
        both = LocalTarget(served.parent)
        return RemotePlace(Area(both, served.name), Area(both, staged.name))
    return RemotePlace(Area(LocalTarget(served)), Area(LocalTarget(staged)))


def promote(place: RemotePlace) -> None:
    """As the job does it: what is there, and then this one."""
    if "9" in {one.name for one in place.staged() if not one.missing}:
        place.promote(Version("9", staged=True))


def promote_until(base: str, staging: str, last: int) -> None:
    step = 0

    def count() -> None:
        nonlocal step
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            count()
            return function(*arguments, **named)

        return call

    call = S3FileSystem._call_s3

    async def asked(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        if method.startswith(WRITES):
            count()
        return await call(self, method, *arguments, **named)

    S3FileSystem._call_s3 = asked
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    promote(place_of(base, staging))


def main() -> None:
    for line in sys.stdin:
        base, staging, last = line.split()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                promote_until(base, staging, int(last))
                status = 0
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
