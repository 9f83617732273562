"""``python -m tests.support.commands NAME``: commands of ``capture`` that end in ways that real ones seldom do."""

from __future__ import annotations

import signal
import sys

from capture import __main__ as command_line
from capture.__main__ import Command


def waits() -> None:
    """Until a signal; and clears up."""
    try:
        print("running", flush=True)
        signal.pause()
    finally:
        print("cleared up", flush=True)


def fails_on_a_file() -> None:
    raise PermissionError(13, "Permission denied", "/some/file")


def fails_without_a_file() -> None:
    raise OSError("nothing more is known")


def lacks_the_extra() -> None:
    raise ModuleNotFoundError("No module named 'grpc'", name="grpc")


def lacks_something_else() -> None:
    raise ModuleNotFoundError("No module named 'capture.gone'", name="capture.gone")


if __name__ == "__main__":
    for name in ("waits", "fails_on_a_file", "fails_without_a_file", "lacks_the_extra", "lacks_something_else"):
        command_line.COMMANDS[name] = Command(f"tests.support.commands:{name}", "A test.")
    command_line.main(sys.argv[1:])
