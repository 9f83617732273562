"""``capture proxy`` with the worker of faulty_worker.py; the same arguments."""

from __future__ import annotations

import sys

import typer

from proxy import command

WORKER = (sys.executable, "-m", "tests.support.faulty_worker")
_run = command.run
command.run = lambda settings, **more: _run(settings, WORKER, **more)  # type: ignore[misc,assignment]

if __name__ == "__main__":
    typer.run(command.proxy)
