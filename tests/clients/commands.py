"""The command lines of the real clients; both read a plan from standard input."""

from __future__ import annotations

import sys

from tests.support.processes import ROOT


def tfserving_client(target: str, model: str, *options: str) -> list[str]:
    """tensorflow-serving-api over grpcio, towards ``host:port``."""
    return [sys.executable, "-m", "tests.clients.tfserving_client", target, model, *options]


def eas_client(target: str, service: str, *options: str) -> list[str]:
    """The EAS SDK, which needs an environment of its own, towards a URL."""
    python = ROOT / ".venv-eas" / "bin" / "python"
    return [str(python), "tests/clients/eas/client.py", target, service, *options]


def eas_kinds(*arguments: str) -> list[str]:
    """The same SDK, every kind of request of it."""
    python = ROOT / ".venv-eas" / "bin" / "python"
    return [str(python), "tests/clients/eas/kinds.py", *arguments]
