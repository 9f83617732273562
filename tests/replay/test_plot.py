"""The picture: what is in it is read from the figure's own texts and bars by drawing it once more."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from capture.errors import UserError
from replay.plot import MOST, plot


def executor(line: str, cold: float = 310.0, warm: float | None = 2.0, built: int = 0) -> dict[str, Any]:
    def one(first: float, builds: int) -> dict[str, Any]:
        return {"graph_builds": builds, "xla_compilations": 0, "first_ms": first, "steady_ms": 1.5}

    return {"line": line, "cold": one(cold, 1), "herd": None, "warm": None if warm is None else one(warm, built)}


def summary(*executors: dict[str, Any]) -> dict[str, Any]:
    return {
        "verdict": "proved",
        "level": "executor",
        "tensorflow": "2.21.0",
        "model": "ranking",
        "saved_model": "ranking/1",
        "held_out_requests": 3,
        "held_out_refused": 0,
        "held_out_unreadable": 0,
        "byte_identical": 0,
        "executor_keys": 2,
        "records": 2,
        "judged_by_record_only": 0,
        "cold": {"graph_builds": 2},
        "warm": {"graph_builds": 0},
        "herd": None,
        "executors": list(executors),
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written."""
    figures: list[Figure] = []
    true = Figure.savefig

    def savefig(figure: Figure, *values: Any, **named: Any) -> None:
        figures.append(figure)
        true(figure, *values, **named)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_cold_stands_beside_warm(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "out.png"
    lines = ["Predict m (x) -> (a)", "Predict m (x) -> (b)"]
    plot(summary(executor(lines[0]), executor(lines[1], cold=1290.0, warm=1190.0, built=1)), path)
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", header[16:])) > 300
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    assert [bar.get_width() for bar in axes.patches] == [310.0, 2.0, 1290.0, 1190.0]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == [
        " 310.0 ms, 1 built",
        " 2.0 ms",
        " 1.29 s, 1 built",
        " 1.19 s, 1 built",
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == [line.replace(" -> ", "\n-> ") for line in lines]


def test_a_file_that_does_not_load_leaves_the_cold_bars(tmp_path: Path, drawn: list[Figure]) -> None:
    plot(summary(executor("Predict m (x) -> (a)", warm=None)), tmp_path / "out.png")
    assert len(drawn[0].axes[0].patches) == 1


def test_of_very_many_the_slowest_are_shown_and_the_rest_is_counted(tmp_path: Path, drawn: list[Figure]) -> None:
    many = [executor(f"Predict m (x) -> (a{n})", cold=100.0 + n) for n in range(MOST + 5)]
    plot(summary(*many), tmp_path / "out.png")
    assert len(drawn[0].axes[0].patches) == 2 * MOST
    assert "(5 more executors are not shown)" in drawn[0].get_suptitle()


def test_what_cannot_be_drawn_or_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no request was run"):
        plot(summary(), tmp_path / "out.png")
    with pytest.raises(UserError, match="No such file or directory"):
        plot(summary(executor("Predict m (x) -> (a)")), tmp_path / "nothing" / "out.png")
