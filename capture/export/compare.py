"""How two warm-up files, or a file and a store, differ: by signature, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from capture.differences import nearest
from capture.export.entries import STORE, Contents, Entry
from capture.levels import split
from capture.signature import WireSignature


@dataclass(frozen=True, slots=True)
class Only:
    """Something that one side has. ``nearest`` is the identity on the other side that differs least, ``differences``
    how this one differs from it; both empty where there is none."""

    entry: Entry
    nearest: str = ""
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """Something that both sides have, and how the second differs."""

    entry: Entry
    differences: tuple[str, ...]


@dataclass(slots=True)
class Comparison:
    """``same`` counts signatures that do not differ."""

    only_a: list[Only] = field(default_factory=list)
    only_b: list[Only] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)
    same: int = 0

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return bool(self.only_a or self.only_b or self.changed)


def compare(a: Contents, b: Contents) -> Comparison:
    """Compare by wire signature, in the order of the records; requests that have none, by their bytes. Where one side
    does not name models (an EAS body does not), they are left out of the comparison."""
    nameless = any(one.signature is not None and not one.signature.model for one in (*a.entries, *b.entries))
    # Where a level told requests apart, the shapes of their samples do.
    shapes = any(split(one.identity)[1] for one in (*a.entries, *b.entries) if one.signature is not None)
    mine, theirs = _grouped(a.entries, nameless, shapes), _grouped(b.entries, nameless, shapes)
    found = Comparison()
    for identity, entries in mine.items():
        if identity not in theirs:
            found.only_a.append(_only(entries[0], theirs, nameless))
        elif differences := _differences(entries, theirs[identity], files=STORE not in (a.form, b.form)):
            found.changed.append(Changed(entries[0], tuple(differences)))
        else:
            found.same += 1
    found.only_b = [_only(entries[0], mine, nameless) for identity, entries in theirs.items() if identity not in mine]
    return found


def _named(signature: WireSignature, nameless: bool) -> WireSignature:
    return replace(signature, model="") if nameless else signature


def _grouped(entries: Iterable[Entry], nameless: bool, shapes: bool) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        identity = entry.identity if entry.signature is None else _named(entry.signature, nameless).digest
        groups.setdefault(f"{identity} {entry.shapes}" if shapes else identity, []).append(entry)
    return groups


def _only(entry: Entry, others: dict[str, list[Entry]], nameless: bool) -> Only:
    if entry.signature is None:
        return Only(entry)
    there = {
        _named(other.signature, nameless): other.identity
        for group in others.values()
        for other in group
        if other.signature is not None
    }
    best = nearest(_named(entry.signature, nameless), there)
    return Only(entry) if best is None else Only(entry, there[best[0]], tuple(best[1]))


def _differences(mine: list[Entry], theirs: list[Entry], *, files: bool) -> list[str]:
    """How records of one signature differ. It decides nothing about executors, but may about what was meant. Values are
    not compared. A store keeps a request for each version that answered, so only files are held to their number."""
    found = []
    shapes, others = ({one.shapes for one in group if one.shapes} for group in (mine, theirs))
    if shapes and others and not shapes & others:
        found.append(f"inputs are {_list(others)}, not {_list(shapes)}")
    if files and len(mine) != len(theirs):
        found.append(f"{len(theirs)} record{'s' * (len(theirs) != 1)}, not {len(mine)}")
    if files and all(one.hits is None for one in (*mine, *theirs)):
        # Where hits are told, the version is that which answered, not one that the request names.
        pins, other_pins = ({one.version for one in group} for group in (mine, theirs))
        if pins != other_pins:
            found.append(f"names version {_list(other_pins)}, not {_list(pins)}")
    return found


def _list(texts: Iterable[str]) -> str:
    return " or ".join(sorted(text for text in texts if text)) or "none"
