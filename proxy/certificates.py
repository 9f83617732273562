"""Certificates that are renewed while the sidecar runs: their files are looked at, and read again when they changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from capture.settings_errors import SettingsError
from proxy.configs import certificate_files, check_certificates
from proxy.settings import Settings

log = logging.getLogger("supervisor")

#: Seconds between two looks. Whoever renews certificates does so days before they expire.
LOOK_SECONDS: Final = 10.0

Fingerprint = tuple[tuple[str, int, int, int], ...]


async def watch_certificates(settings: Callable[[], Settings], reload: Callable[[], None]) -> None:
    """Call ``reload`` whenever a file of the settings in effect changed and all can be used. What cannot be used (a
    certificate whose key is not written yet) is told once, and what is in use stays in use. Never ends."""
    files = certificate_files(settings())
    seen = _fingerprint(files)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = settings()
        if files != (files := certificate_files(now)):
            # The settings were read again, and the files with them.
            seen = await asyncio.to_thread(_fingerprint, files)
            continue
        found = await asyncio.to_thread(_fingerprint, files)
        if found == seen:
            continue
        seen = found
        try:
            check_certificates(now)
        except SettingsError as error:
            log.error("certificates changed and cannot be used; the old ones stay", extra={"fields": {"error": error}})
        else:
            reload()
            log.info("certificates reloaded")


def _fingerprint(paths: list[str]) -> Fingerprint:
    """Changes when one of the files does: (path, inode, time of change in ns, size), -1 where there is none.
    Of change, not of modification: a key may become readable later than it was written."""
    found = []
    for path in paths:
        try:
            stat = Path(path).stat()
        except OSError:
            found.append((path, -1, -1, -1))
        else:
            found.append((path, stat.st_ino, stat.st_ctime_ns, stat.st_size))
    return tuple(found)
