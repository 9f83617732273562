"""PromQL read by a parser of its own: which series an expression takes, and which labels its result has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser

#: What Prometheus adds to every series that it scrapes.
TARGET = frozenset({"instance", "job"})


def parse(expression: str) -> Any:
    """Also an expression of Grafana, whose own variables stand for durations. Raises ValueError."""
    return promql_parser.parse(re.sub(r"\$__(rate_)?interval\b", "5m", expression))


def selectors(node: Any) -> Iterator[tuple[str, frozenset[str]]]:
    """Name and matched labels of every selector."""
    match type(node).__name__:
        case "VectorSelector":
            yield node.name, frozenset(one.name for one in node.matchers.matchers)
        case "MatrixSelector":
            yield from selectors(node.vector_selector)
        case "Call":
            for one in node.args:
                yield from selectors(one)
        case "BinaryExpr":
            yield from selectors(node.lhs)
            yield from selectors(node.rhs)
        case "AggregateExpr" | "ParenExpr" | "UnaryExpr":
            yield from selectors(node.expr)
        case "NumberLiteral" | "StringLiteral":
            return
        case other:
            raise AssertionError(f"{other}: not known here")


def family(name: str) -> str:
    """The metric that a sample belongs to."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def labels(node: Any, known: Mapping[str, tuple[str, ...]]) -> frozenset[str] | None:
    """Labels of the result, None of a number. ``known``: the labels of each metric. Raises AssertionError where two
    sides can never match, or a label is asked for that is not there."""
    match type(node).__name__:
        case "VectorSelector":
            found = TARGET | set(known[family(node.name)]) | ({"le"} if node.name.endswith("_bucket") else set())
            asked = {one.name for one in node.matchers.matchers}
            assert asked <= found, f"{node.name} has no {asked - found}"
            return frozenset(found)
        case "MatrixSelector":
            return labels(node.vector_selector, known)
        case "Call":
            inner = [one for arg in node.args if (one := labels(arg, known)) is not None]
            if not inner:
                return None
            return inner[0] - {"le"} if node.func.name == "histogram_quantile" else inner[0]
        case "AggregateExpr":
            found = labels(node.expr, known) or frozenset()
            if node.modifier is None:
                return frozenset()
            named = frozenset(node.modifier.labels)
            assert named <= found, f"no {named - found} in {node.expr.prettify()}"
            return named if node.modifier.type == promql_parser.AggModifierType.By else found - named
        case "ParenExpr" | "UnaryExpr":
            return labels(node.expr, known)
        case "NumberLiteral" | "StringLiteral":
            return None
        case "BinaryExpr":
            left, right = labels(node.lhs, known), labels(node.rhs, known)
            assert node.modifier is None or node.modifier.matching is None, "on() and ignoring() are not known here"
            if left is None or right is None:
                return left if right is None else right
            assert str(node.op) == "or" or left == right, f"{set(left)} and {set(right)} never match: {node.prettify()}"
            return left | right
        case other:
            raise AssertionError(f"{other}: not known here")
