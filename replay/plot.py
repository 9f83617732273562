"""The picture of a verification: each executor's first call, cold beside warm. Needs matplotlib (``warmtap[plot]``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

from capture.commands.tables import printable
from capture.errors import UserError
from replay.commands.verify_table import verdict_line

#: More executors than this are not told apart at a glance; those with the slowest cold calls are shown.
MOST: Final = 30
#: Characters of a signature's line beside its bars.
LINE: Final = 62
_COLD, _WARM, _BUILT = "#c44e52", "#4c9f70", "#8c1c22"


def needs_matplotlib() -> None:
    """Raises UserError where it is not installed: said before minutes are spent on what is to be drawn."""
    if find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib, which is not installed: pip install 'warmtap[plot]'")


def plot(summary: dict[str, Any], path: Path) -> None:
    """Write a PNG of a verification's summary. Raises UserError where nothing was run or the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ran = [one for one in summary["executors"] if one["cold"] is not None]
    if not ran:
        raise UserError(f"--plot {path}: no request was run, so there is nothing to draw")
    shown = sorted(ran, key=lambda one: float(one["cold"]["first_ms"]))[-MOST:]
    figure = Figure(figsize=(11, 2.2 + 0.55 * len(shown)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for place, one in enumerate(shown):
        for name, color, offset in (("cold", _COLD, 0.2), ("warm", _WARM, -0.2)):
            found = one[name]
            if found is None:
                continue
            axes.barh(place + offset, found["first_ms"], height=0.36, color=color)
            built = found["graph_builds"]
            text = f" {_time(found['first_ms'])}" + (f", {built} built" if built else "")
            late = bool(built) and name == "warm"
            axes.text(
                max(found["first_ms"], found["steady_ms"] or 0), place + offset, text, va="center", fontsize=8,
                color=_BUILT if late else "black", fontweight="bold" if late else "normal",
            )  # fmt: skip
            if found["steady_ms"] is not None:
                axes.plot([found["steady_ms"]] * 2, [place + offset - 0.18, place + offset + 0.18], color="black", lw=1)
    axes.set_yticks(range(len(shown)), [_label(one["line"]) for one in shown])
    axes.tick_params(axis="y", labelsize=8)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 4)  # room for the figures behind the longest bars
    axes.set_xlabel("first call, ms (log scale)")
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.legend(
        handles=[
            Patch(color=_COLD, label="cold: without the file"),
            Patch(color=_WARM, label="warm: behind the file"),
            Line2D([], [], color="black", lw=1, label="steady"),
        ],
        loc="outside lower right", ncols=3, fontsize=8,
    )  # fmt: skip
    left = len(ran) - len(shown)
    more = f" ({left} more executors are not shown)" if left else ""
    figure.suptitle(
        f"{printable(summary['model'])}: {summary['verdict']} at level {summary['level']}{more}", fontsize=12
    )
    axes.set_title(shorten(verdict_line(summary), 400), fontsize=7, wrap=True, color="#555555")
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"--plot {path}: {error.strerror}") from None


def _label(line: str) -> str:
    """What is fed above what is fetched: signatures often differ in the latter alone."""
    head, arrow, tail = printable(line).rpartition(" -> ")
    return "\n".join(shorten(part, LINE, placeholder=" …") for part in (head, arrow.lstrip() + tail) if part)


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.1f} ms"
