"""The model host as a process: start it, wait for its ready line, ask its side door, end it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.tf_models import ROOT

#: Seconds until a host that neither is ready nor ends is killed. Far above what it needs: nothing is timed here.
PATIENCE = 120.0


class HostFailed(AssertionError):
    """The host ended before it was ready. ``error`` is what it wrote to stderr."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(f"exit status {status}: {error}")
        self.status = status
        self.error = error


class HostProcess:
    """``capture host`` serving gRPC, EAS (service ``rank``) and statistics on ports of its own.

    ``grpc``, ``eas`` and ``stats`` are ``host:port``; ``builds`` is the ready line's, None where it says ``-``.
    """

    def __init__(self, version_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        command: Sequence[str] = [
            sys.executable,
            "-m",
            "capture",
            "host",
            f"--saved-model={version_dir}",
            "--grpc-listen=127.0.0.1:0",
            "--eas-listen=127.0.0.1:0",
            "--eas-service=rank",
            "--stats-listen=127.0.0.1:0",
            *arguments,
        ]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._error: list[str] = []
        self._drain = threading.Thread(target=self._error.extend, args=(self.process.stderr,), daemon=True)
        self._drain.start()
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line.startswith("ready "):
            self.close()
            raise HostFailed(self.process.returncode, self.error)
        fields = dict(part.split("=", 1) for part in line.split()[1:])
        self.grpc, self.eas, self.stats = fields["grpc"], fields["eas"], fields["stats"]
        self.builds = None if fields["builds"] == "-" else int(fields["builds"])
        self.level = fields["level"]

    @property
    def error(self) -> str:
        """Everything on stderr so far."""
        return "".join(self._error)

    def get(self, path: str) -> str:
        """``GET`` on the statistics port."""
        with urllib.request.urlopen(f"http://{self.stats}{path}", timeout=PATIENCE) as response:
            text: str = response.read().decode()
            return text

    def statistics(self) -> dict[str, Any]:
        """``GET /stats``."""
        found: dict[str, Any] = json.loads(self.get("/stats"))
        return found

    def new_builds(self) -> int:
        """Graphs built since it was ready."""
        found = self.statistics()
        return int(found["builds"]) - int(found["builds_at_ready"])

    def close(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        status = self.process.wait(PATIENCE)
        self._drain.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.returncode is None:
            self.close()
