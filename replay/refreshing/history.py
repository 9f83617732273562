"""What was published and why: a file of JSON lines, one for each event, the oldest dropped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from capture.export.files import PRIVATE_MODE, write_atomically

NAME: Final = "history.jsonl"
#: The file is cut to MAX_EVENTS when it has that many and SLACK more: an event of 50 new signatures has some 10 KB.
MAX_EVENTS: Final = 1000
SLACK: Final = 200


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """``event`` is what happened (publishing, then published; promoted, held, failed), ``why`` the reason in words.
    ``at`` is UTC, ISO 8601; ``added`` and ``removed`` are lines of signatures, ``left_out`` lines with their reason;
    no value of a request is in any of them but what an error of TensorFlow quotes."""

    at: str
    event: str
    model: str
    version: str
    why: str = ""
    records: int = 0
    sha256: str = ""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class History:
    """The history in a directory."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME

    def events(self) -> list[Event]:
        """All that can be read, oldest first; the line that a kill cut short is passed over. Raises OSError."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        found = []
        for line in data.splitlines():
            try:
                found.append(msgspec.json.decode(line, type=Event))
            except msgspec.MsgspecError:
                continue
        return found

    def add(self, event: Event) -> None:
        """Write one down, and keep the file short. Raises OSError."""
        known = self.events()
        if len(known) >= MAX_EVENTS + SLACK:
            self._rewrite([*known[-MAX_EVENTS + 1 :], event])
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_MODE)
        with open(descriptor, "r+b", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            # What a kill cut short is ended, so that it costs no other line.
            begin = b"\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else b""
            file.write(begin + msgspec.json.encode(event) + b"\n")
            os.fsync(descriptor)

    def add_news(self, event: Event) -> None:
        """The same, but for one that says of its version what one of the last two said: to begin and to fail, again and
        again, would drive out what was published."""
        mine = [one for one in self.events() if (one.model, one.version) == (event.model, event.version)]
        if all(_said(one) != _said(event) for one in mine[-2:]):
            self.add(event)

    def _rewrite(self, events: Sequence[Event]) -> None:
        data = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        write_atomically(self._path, data, check=lambda _: None)


def _said(event: Event) -> tuple[str, str, str]:
    return event.event, event.why, event.sha256
