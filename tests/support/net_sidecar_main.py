"""``capture proxy`` with the worker of net_worker.py instead of the real one; the same arguments."""

from __future__ import annotations

import sys

import typer

from proxy import command

WORKER = (sys.executable, "-m", "tests.support.net_worker")
_run = command.run
command.run = lambda settings, **more: _run(settings, WORKER, **more)  # type: ignore[misc,assignment]

if __name__ == "__main__":
    typer.run(command.proxy)
