"""HPACK decoding (RFC 7541) for an observer: every block is decoded, none raises into the flow, entries know their age.

``hpack.Decoder`` serves endpoints: it raises on what an observer meets (limits that a missed SETTINGS changed, lists
over 64 KiB), and cannot tell which entries a block leaned on. An observer must know that after a gap, and must know
whether a block changed the table before it may remember it. So the table is kept here; Huffman coding and the static
table are the library's, and its decoder is the oracle in the tests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from capture.wire.events import Headers
from capture.wire.saved import CERTAIN, DOUBTFUL, MOVED, SavedTable, kept

# The dynamic table's size that an encoder may choose, in bytes as RFC 7541 §4.1 counts them. Chosen, not negotiated:
# the SETTINGS may have passed in a gap. Real peers use 4 KiB, proxies up to 64 KiB.
MAX_TABLE_BYTES = 64 * 1024
DEFAULT_TABLE_BYTES = 4096
ENTRY_OVERHEAD_BYTES = 32
# A decoded header list, in bytes counted likewise. gRPC's default limit is 8 KiB, Envoy's 60 KiB; and a 64 KiB entry
# can be named once per byte of block, so that without a bound 256 KiB of block unpack to 16 GiB.
MAX_LIST_BYTES = 256 * 1024
# Remembered blocks of one direction, in bytes of blocks and lists. A warm client has a handful of distinct blocks.
MEMO_BYTES = 64 * 1024
_MEMO_ENTRY = 400
# Strings whose Huffman decoding is remembered, for all flows: paths, agents, timeouts. Longer ones are decoded anew.
_HUFFMAN_ENTRIES, _HUFFMAN_BYTES = 2048, 128

_STATIC: tuple[tuple[bytes, bytes], ...] = HeaderTable.STATIC_TABLE
_STATIC_LENGTH = len(_STATIC)
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"))

# Entries are (name, value, size, stamp): stamp is the table's epoch at insertion, or one of these.
_Entry = tuple[bytes, bytes, int, int]
_DOUBTFUL = -1  # its name was copied from an entry that is not certain
_OLD = -3  # from before a gap that another process met
_UNKNOWN: _Entry = (b"", b"", 0, -2)  # stands for an entry that was never seen


class HpackError(Exception):
    """The block breaks RFC 7541, or a limit. The message is a short fixed phrase. Stays inside ``capture.wire``."""


@dataclass(slots=True)
class Block:
    """A decoded header block. ``fault`` is empty, or why the list cannot be used (the table is right nevertheless).
    ``status`` is 0 where there is none. ``verified`` is False if an entry from before a gap was used."""

    method: bytes
    scheme: bytes
    path: bytes
    authority: bytes
    status: int
    headers: Headers
    pseudo: bool
    verified: bool
    fault: str
    is_request: bool  # complete as a request's head (RFC 9113 §8.3.1; CONNECT has an authority only)

    @property
    def plausible(self) -> bool:
        """Whether it can be believed if it is not verified: a known method, http or https, a path or a status."""
        if self.status:
            return not self.method
        return self.method in _METHODS and self.scheme in (b"http", b"https") and self.path[:1] == b"/"


class HpackTable:
    """One direction's decoder. ``decode`` takes whole blocks in the order sent."""

    __slots__ = ("_bytes", "_complete", "_entries", "_epoch", "_fresh", "_max", "_memo", "_memo_bytes", "_reshaped")

    def __init__(self, joined: bool = False) -> None:
        """``joined``: entries were inserted that nobody saw, so an index beyond the table is no error."""
        self._entries: deque[_Entry] = deque()  # newest first, as they are numbered
        self._bytes = 0
        self._max = DEFAULT_TABLE_BYTES
        self._epoch = 0
        self._complete = not joined
        # Valid while the table does not change: every insertion, eviction, resize and gap empties it, and a block that
        # did any of these is not remembered. (Length, size and newest entry do not tell: an entry may push out its
        # equal.)
        self._memo: dict[bytes, Block] = {}
        self._memo_bytes = 0
        # Since the last save: entries inserted, and whether there was a change that only a whole save tells.
        self._fresh = 0
        self._reshaped = True

    def held_bytes(self) -> int:
        """In bytes, an upper estimate."""
        return self._bytes + len(self._entries) * 150 + self._memo_bytes

    def distrust(self) -> None:
        """Blocks were missed: what is in the table now may have moved, and entries may be missing."""
        self._epoch += 1
        self._complete = False
        self._reshaped = True
        self._forget()

    def save(self, whole: bool) -> SavedTable | None:
        """What changed since the last save, None for nothing; or all of it."""
        fresh, self._fresh = self._fresh, 0
        if self._reshaped or fresh >= len(self._entries) > 0:
            whole = True
        elif not whole and not fresh:
            return None
        self._reshaped = False
        epoch = self._epoch
        entries = list(self._entries) if whole else list(islice(self._entries, fresh))
        return SavedTable(
            whole,
            self._max,
            self._complete,
            [
                (name, b"*" * len(value), DOUBTFUL)
                if stamp == _DOUBTFUL
                else (name, kept(name, value), CERTAIN if stamp == epoch else MOVED)
                for name, value, _, stamp in entries
            ],
        )

    def load(self, saved: SavedTable) -> None:
        """Take up what was saved, in the order of saving."""
        if saved.whole:
            self._entries.clear()
            self._bytes = 0
        self._max, self._complete = saved.limit, saved.complete
        stamps = {CERTAIN: self._epoch, MOVED: _OLD, DOUBTFUL: _DOUBTFUL}
        for name, value, what in reversed(saved.entries):
            cost = len(name) + len(value) + ENTRY_OVERHEAD_BYTES
            self._entries.appendleft((name, value, cost, stamps[what]))
            self._bytes += cost
        self._evict()
        self._fresh, self._reshaped = 0, True
        self._forget()

    def _forget(self) -> None:
        self._memo.clear()
        self._memo_bytes = 0

    def decode(self, block: bytes) -> Block:
        """Raises HpackError where the rest of this direction can no longer be decoded."""
        known = self._memo.get(block)
        if known is not None:
            return known
        pairs: list[tuple[bytes, bytes]] = []
        entries = self._entries
        epoch = self._epoch
        size = 0
        changed = unknown = False
        verified = True
        pos, end = 0, len(block)
        while pos < end:
            first = block[pos]
            pos += 1
            if first & 0x80:  # indexed field, §6.1
                index = first & 0x7F
                if index == 0x7F:
                    index, pos = _integer(block, pos, 0x7F)
                if index <= _STATIC_LENGTH:
                    if not index:
                        raise HpackError("hpack index 0")
                    pair = _STATIC[index - 1]
                    pairs.append(pair)
                    size += len(pair[0]) + len(pair[1]) + 32
                else:
                    entry = self._entry(index)
                    if entry[3] != epoch:
                        verified = False
                        unknown = unknown or entry is _UNKNOWN
                    pairs.append(entry[:2])
                    size += entry[2]
            elif first & 0xE0 == 0x20:  # size update, §6.3: before any field, §4.2
                if pairs:
                    raise HpackError("hpack size update after a field")
                limit = first & 0x1F
                if limit == 0x1F:
                    limit, pos = _integer(block, pos, 0x1F)
                if limit > MAX_TABLE_BYTES:
                    raise HpackError("hpack table over limit")
                self._max = limit
                self._reshaped = True
                self._evict()
                changed = True
            else:  # literal field: with indexing §6.2.1, without §6.2.2, never §6.2.3
                mask = 0x3F if first & 0x40 else 0x0F
                index = first & mask
                if index == mask:
                    index, pos = _integer(block, pos, mask)
                stamp = epoch
                if not index:
                    name, pos = _string(block, pos)
                elif index <= _STATIC_LENGTH:
                    name = _STATIC[index - 1][0]
                else:
                    entry = self._entry(index)
                    name = entry[0]
                    if entry[3] != epoch:
                        verified = False
                        stamp = _DOUBTFUL
                        unknown = unknown or entry is _UNKNOWN
                value, pos = _string(block, pos)
                cost = len(name) + len(value) + ENTRY_OVERHEAD_BYTES
                size += cost
                pairs.append((name, value))
                if first & 0x40:
                    changed = True
                    entries.appendleft((name, value, cost, stamp))
                    self._bytes += cost
                    self._fresh += 1
                    self._evict()
            if size > MAX_LIST_BYTES:
                del pairs[1:]  # keep decoding for the table's sake, collect no more
        if size > MAX_LIST_BYTES:
            result = _unusable("header list too large")
        elif unknown:
            result = _unusable("header history lost")
        else:
            result = classify(pairs, verified)
        if changed:
            self._forget()
        elif not result.fault:
            cost = len(block) + size + _MEMO_ENTRY
            if self._memo_bytes + cost > MEMO_BYTES:
                self._forget()
            if cost <= MEMO_BYTES:
                self._memo[block] = result
                self._memo_bytes += cost
        return result

    def _entry(self, index: int) -> _Entry:
        index -= _STATIC_LENGTH + 1
        if index < len(self._entries):
            entry = self._entries[index]
            # An entry whose own name was never seen is as good as unknown.
            return entry if entry[0] else _UNKNOWN
        if self._complete:
            raise HpackError("hpack index beyond table")
        return _UNKNOWN

    def _evict(self) -> None:
        entries = self._entries
        while self._bytes > self._max:  # §4.3, §4.4: an entry larger than the table empties it
            self._bytes -= entries.pop()[2]


def _integer(block: bytes, pos: int, prefix: int) -> tuple[int, int]:
    """RFC 7541 §5.1 -> (value, position behind it). Four more bytes carry any number a frame has room for."""
    value, shift = prefix, 0
    while shift <= 21:
        if pos >= len(block):
            raise HpackError("hpack block cut short")
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    raise HpackError("hpack integer too large")


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """RFC 7541 §5.2 -> (string, position behind it)."""
    if pos >= len(block):
        raise HpackError("hpack block cut short")
    first = block[pos]
    pos += 1
    length = first & 0x7F
    if length == 0x7F:
        length, pos = _integer(block, pos, 0x7F)
    stop = pos + length
    if stop > len(block):
        raise HpackError("hpack block cut short")
    raw = block[pos:stop]
    if first < 0x80:
        return raw, stop
    try:
        return (_huffman_cached(raw) if length <= _HUFFMAN_BYTES else decode_huffman(raw)), stop
    except HPACKDecodingError as error:
        raise HpackError("hpack bad Huffman code") from error


@lru_cache(maxsize=_HUFFMAN_ENTRIES)
def _huffman_cached(raw: bytes) -> bytes:
    return decode_huffman(raw)


def _unusable(fault: str) -> Block:
    return Block(b"", b"", b"", b"", 0, (), False, False, fault, False)


def classify(pairs: list[tuple[bytes, bytes]], verified: bool) -> Block:
    """Splits pseudo-headers from fields. Malformed lists (RFC 9113 §8.2, §8.3) have ``fault`` set."""
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    for pair in pairs:
        name = pair[0]
        if name[:1] == b":":
            if fields or name in pseudo:
                return _unusable("malformed head")
            pseudo[name] = pair[1]
        elif not name or name != name.lower():
            return _unusable("malformed head")
        else:
            fields.append(pair)
    take = pseudo.get
    method, scheme, path = take(b":method", b""), take(b":scheme", b""), take(b":path", b"")
    authority = take(b":authority", b"")
    status = take(b":status", b"")
    if status and (len(status) != 3 or not status.isdigit() or status[0] == 0x30):
        return _unusable("malformed head")
    if not authority and method:
        authority = next((value for name, value in fields if name == b"host"), b"")
    code = int(status) if status else 0
    complete = bool(authority) if method == b"CONNECT" else bool(method and path and scheme)
    return Block(
        method, scheme, path, authority, code, tuple(fields), bool(pseudo), verified, "", complete and not code
    )
