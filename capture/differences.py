"""How wire signatures differ, in words: that is the bug users hunt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from capture.signature import WireSignature


def differences(one: WireSignature, other: WireSignature) -> list[str]:
    """How ``one`` differs from ``other``, each as a short phrase; empty where they are equal."""
    found = []
    for what in ("family", "model", "method", "signature_name"):
        if (mine := getattr(one, what)) != (theirs := getattr(other, what)):
            found.append(f"{what} is {mine}, not {theirs}")
    found += _names("feeds", one.inputs, other.inputs)
    if one.outputs is None and other.outputs is not None:
        found.append(f"fetches all outputs (empty filter), not only: {', '.join(other.outputs)}")
    elif one.outputs is not None and other.outputs is None:
        found.append(f"fetches only: {', '.join(one.outputs)}, not all outputs (empty filter)")
    else:
        found += _names("fetches", one.outputs or (), other.outputs or ())
    return found


def _names(verb: str, mine: tuple[str, ...], theirs: tuple[str, ...]) -> list[str]:
    """The difference of two multisets of names in words."""
    found = []
    more, fewer = Counter(mine) - Counter(theirs), Counter(theirs) - Counter(mine)
    if more:
        found.append(f"{verb} also: {', '.join(sorted(more.elements()))}")
    if fewer:
        found.append(f"{verb} not: {', '.join(sorted(fewer.elements()))}")
    return found


def nearest(one: WireSignature, others: Iterable[WireSignature]) -> tuple[WireSignature, list[str]] | None:
    """The signature among ``others`` that differs least from ``one``, and how; None where there is none."""
    best: tuple[tuple[int, int, str], WireSignature, list[str]] | None = None
    for other in others:
        if other == one:
            continue
        found = differences(one, other)
        size = len(set(one.inputs) ^ set(other.inputs)) + len(set(one.outputs or ()) ^ set(other.outputs or ()))
        rank = (len(found), size, other.digest)
        if best is None or rank < best[0]:
            best = (rank, other, found)
    return None if best is None else (best[1], best[2])
