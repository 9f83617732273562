"""From rounds to figures: medians, and ratios within each round, since the machine is another one every minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

BASELINE = "nginx"
#: What two runs of the same program differ by on a quiet machine: at or below the baseline is said with this margin.
MARGIN = 0.05
MICROSECONDS = 1_000_000


class Measured(NamedTuple):
    """One contender in one round. ``parts``: CPU seconds by part. ``fault``: why it does not count, or empty."""

    scenario: str
    contender: str
    round: int
    completed: int
    seconds: float
    parts: Mapping[str, float]
    fault: str

    def cost(self, part: str = "all") -> float:
        """Microseconds of CPU per request."""
        return MICROSECONDS * self.parts[part] / self.completed


def summarise(measured: Sequence[Measured]) -> dict[str, dict[str, dict[str, Any]]]:
    """By scenario and contender: median cost of each part, requests a second, median ratio to the baseline in the same
    round, and the faults. Rounds with a fault count nowhere; without one that counts there are no figures."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for scenario in dict.fromkeys(one.scenario for one in measured):
        rows = [one for one in measured if one.scenario == scenario]
        base = {one.round: one.cost() for one in rows if one.contender == BASELINE and not one.fault}
        for contender in dict.fromkeys(one.contender for one in rows):
            mine = [one for one in rows if one.contender == contender]
            good = [one for one in mine if not one.fault]
            ratios = [one.cost() / base[one.round] for one in good if one.round in base]
            row: dict[str, Any] = {"rounds": len(good), "faults": [one.fault for one in mine if one.fault]}
            if good:
                row["microseconds"] = {part: median(one.cost(part) for one in good) for part in good[0].parts}
                row["requests_per_second"] = median(one.completed / one.seconds for one in good)
            if ratios:
                row["ratio"], row["ratio_least"], row["ratio_most"] = median(ratios), min(ratios), max(ratios)
            found.setdefault(scenario, {})[contender] = row
    return found


def table(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """For a terminal."""
    lines = []
    for scenario, rows in summary.items():
        lines.append(f"{scenario}: CPU per request")
        for contender, row in rows.items():
            if "microseconds" in row:
                parts = dict(row["microseconds"])
                every = parts.pop("all")
                spread = (
                    f"{row['ratio']:.2f} ({row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
                    if "ratio" in row
                    else "-"
                )
                inside = "".join(f", {part} {cost:.1f}" for part, cost in parts.items())
                lines.append(
                    f"  {contender:<15}{every:8.1f} us   {spread:>22} x {BASELINE}   "
                    f"{row['requests_per_second']:7.0f}/s{inside}"
                )
            lines += [f"  {contender:<15}a round does not count: {fault}" for fault in row["faults"]]
        lines.append("")
    return "\n".join(lines)


def verdict(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """What is not as promised, a line each: rounds that do not count, and a relay that costs more than nginx. That is
    not promised of TLS, where it is measured alone."""
    wrong = []
    for scenario, rows in summary.items():
        for contender, row in rows.items():
            if 2 * row["rounds"] <= len(row["faults"]) + row["rounds"]:
                wrong.append(f"{scenario}: {contender}: only {row['rounds']} rounds count")
        ratio = rows.get("relay alone", {}).get("ratio")
        if ratio is not None and ratio > 1 + MARGIN and "TLS" not in scenario:
            wrong.append(f"{scenario}: the relay alone costs {ratio:.2f} x {BASELINE}")
    return wrong
