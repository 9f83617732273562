"""``capture proxy`` with a hard limit of 300 descriptors; the same arguments."""

from __future__ import annotations

import resource

import typer

from proxy import command

LIMIT = 300

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    typer.run(command.proxy)
