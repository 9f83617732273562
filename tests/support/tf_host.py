"""``capture host`` as a process: a model server, its addresses and its side door."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.processes import Process
from tests.support.waiting import PATIENCE


class HostProcess(Process):
    """A SavedModel behind gRPC, REST and EAS (service ``rank``), with statistics, each on a port of its own.

    ``grpc``, ``rest``, ``eas`` and ``stats`` are ``host:port``, ``-`` where not served; ``builds`` is the ready line's,
    None if it says ``-``. Raises NotReady if it does not start.
    """

    def __init__(
        self, version_dir: Path, *arguments: str, grpc: bool = True, rest: bool = False, eas: bool = True
    ) -> None:
        """A protocol that is switched off is not served, nor is its warm-up file read."""
        where = ["--stats-listen=127.0.0.1:0"]
        if grpc:
            where.append("--grpc-listen=127.0.0.1:0")
        if rest:
            where.append("--rest-listen=127.0.0.1:0")
        if eas:
            where += ["--eas-listen=127.0.0.1:0", "--eas-service=rank"]
        super().__init__("capture", "host", f"--saved-model={version_dir}", *where, *arguments)
        ready = self.wait_for("^ready (.*)")[1]
        fields = dict(part.split("=", 1) for part in ready.split())
        self.grpc, self.rest, self.eas, self.stats = (fields[name] for name in ("grpc", "rest", "eas", "stats"))
        self.builds = None if fields["builds"] == "-" else int(fields["builds"])
        self.level = fields["level"]

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
