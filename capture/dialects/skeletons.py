"""Requests that differ from earlier ones in their tensors' values alone are not parsed again. Pure.

Clients send the same few shapes all day. Of such a request all bytes are compared but those that no reader looks into
(the contents of a tensor): its skeleton, which says what the request means. Where the contents lie is learned from the
first requests of a length; an equal skeleton at equal places parses alike, since every length is part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, Final

from capture.schema.wire import LENGTH, WireError, fields
from capture.signature import Call

#: Contents that are shorter stay part of the skeleton. Bytes.
MIN_CONTENT_BYTES: Final = 16
#: Fields of one request that are looked at to find its contents: 1 to 2 ms. Real ones have hundreds.
MAX_FIELDS: Final = 1000
#: Bytes of a skeleton; and at least half of the request must be contents, or a skeleton hardly ever occurs twice.
MAX_SKELETON_BYTES: Final = 16 << 10
#: Arrangements of the contents that are tried for one length: some clients write their inputs in any order, and then
#: comparing is in vain.
MAX_LAYOUTS: Final = 4
#: Of the requests of one length that were parsed, those from which is learned: the first, and one in so many of the
#: others; and after how many its layouts are learned anew.
FIRST_MISSES: Final = 32
LATER_MISSES: Final = 64
STALE_MISSES: Final = 64 * 100
#: Bytes of all that is remembered, and what it takes: a length, a skeleton, each of its pieces (and where that is cut)
#: and each of its bytes (names and shapes are there again as text and numbers).
MEMO_BYTES: Final = 8 << 20
_LENGTH_COST, _SKELETON_COST, _PIECE_COST, _BYTE_COST = 500, 1000, 60, 12
#: A character of a name takes four bytes at most.
_CHAR_COST: Final = 4

#: Field numbers, in TF Serving's and EAS's messages alike: a request's inputs, and an entry's value.
_INPUTS, _VALUE = 2, 2

Contents = Callable[[bytes], list[tuple[int, int]]]


class _Length:
    """What is known of requests of one length: how their contents lie, and by skeleton what they mean."""

    __slots__ = ("layouts", "misses")

    def __init__(self) -> None:
        self.misses = 0
        self.layouts: list[tuple[Callable[[bytes], tuple[Any, ...]], dict[tuple[Any, ...], Call]]] = []


class Skeletons:
    """Skeletons seen before; holds at most some :data:`MEMO_BYTES`, and full, it starts again."""

    __slots__ = ("_contents", "_known", "held_bytes")

    def __init__(self, contents: Contents) -> None:
        """``contents``: where in a request the bytes are that change nothing, as (begin, end) in order."""
        self._contents = contents
        self._known: dict[tuple[tuple[str, ...], int], _Length] = {}
        self.held_bytes = 0

    def read(self, place: tuple[str, ...], body: bytes, parse: Callable[[bytes], Call]) -> Call:
        """``parse(body)``, or what that gave for the same skeleton. ``place`` tells apart what else the call depends
        on, in names of any length. The call is shared: not to be changed. Raises what ``parse`` does."""
        key = (place, len(body))
        known = self._known.get(key)
        if known is not None:
            for cut, calls in known.layouts:
                call = calls.get(cut(body))
                if call is not None:
                    return call
        call = parse(body)
        self._miss(key, known, body, call)
        return call

    def _miss(self, key: tuple[tuple[str, ...], int], known: _Length | None, body: bytes, call: Call) -> None:
        if known is None:
            # Many lengths occur once; and clients choose how long the names are.
            self._room(_LENGTH_COST + _CHAR_COST * sum(map(len, key[0])))
            self._known[key] = _Length()
            return
        known.misses += 1
        if known.misses > FIRST_MISSES and known.misses % LATER_MISSES:
            return
        if known.misses % STALE_MISSES == 0:
            known.layouts.clear()
        contents = self._contents(body)
        if not contents:
            return
        layout = _layout(contents, len(body))
        skeleton = layout.unpack(body)
        size = sum(map(len, skeleton))
        if size > min(MAX_SKELETON_BYTES, len(body) // 2):
            return
        self._room(_SKELETON_COST + _PIECE_COST * len(skeleton) + _BYTE_COST * size)
        for cut, calls in known.layouts:
            if cut(body) == skeleton:
                calls[skeleton] = call
                return
        if len(known.layouts) < MAX_LAYOUTS:
            known.layouts.append((layout.unpack, {skeleton: call}))

    def _room(self, cost: int) -> None:
        self.held_bytes += cost
        if self.held_bytes > MEMO_BYTES:
            self._known.clear()
            self.held_bytes = cost


def _layout(contents: list[tuple[int, int]], size: int) -> Struct:
    """What cuts the contents out of a body of ``size`` bytes."""
    parts, at = ["="], 0
    for begin, end in contents:
        parts.append(f"{begin - at}s{end - begin}x")
        at = end
    parts.append(f"{size - at}s")
    return Struct("".join(parts))


def tensor_contents(opaque: Callable[[int], bool]) -> Contents:
    """The contents of the tensors in ``map<string, TENSOR> inputs = 2`` of a request: of their length-delimited fields
    those of whose bytes nothing is read but how many they are (``opaque``, by number). Empty where there are none, or
    more fields than :data:`MAX_FIELDS`."""

    def contents(body: bytes) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        try:
            for looked, (begin, end) in enumerate(_tensor_fields(body, opaque)):
                if looked == MAX_FIELDS:
                    return []
                if end - begin >= MIN_CONTENT_BYTES:
                    found.append((begin, end))
        except WireError:
            return []
        return found

    return contents


def _tensor_fields(body: bytes, opaque: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
    """(begin, end) of what is opaque, and (0, 0) for each field that is not."""
    for entry in fields(body):
        yield 0, 0
        if entry.number != _INPUTS or entry.wire_type != LENGTH:
            continue
        for value in fields(body, entry.value, entry.end):
            yield 0, 0
            if value.number != _VALUE or value.wire_type != LENGTH:
                continue
            for field in fields(body, value.value, value.end):
                yield (field.value, field.end) if field.wire_type == LENGTH and opaque(field.number) else (0, 0)
