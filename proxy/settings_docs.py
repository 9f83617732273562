"""Documentation of every setting, from the one table: docs/settings.md."""

from __future__ import annotations

from typing import Final

from capture.dialects.table import BY_NAME
from capture.settings_table import Row, cells, sections
from proxy.reload import FIXED, FIXED_LISTENER
from proxy.settings import Settings

#: What the head of the page says.
_HEAD: Final = """\
# Settings

Everything that a settings file (`capture proxy --config FILE.yaml`) may say. Only `listeners` is required. Durations
are seconds, sizes are bytes. An unknown key is an error that names the nearest known one. This page is made from the
one table of settings by `make docs`; a test keeps it up to date.

    capture config check FILE.yaml             # one line: ok, or what is wrong and where
    capture config show --config FILE.yaml     # the effective settings, defaults included

`config show` takes `--listen` and `--upstream` too, as `capture proxy` does. With `log_level: debug` the effective
settings are the first line of the sidecar's log. Neither holds a secret: keys and tokens are named by the paths of
their files.

"At SIGHUP" says whether a change takes effect when the running sidecar reads its settings again. Where it says
"restart", `capture proxy --take-over` replaces the sidecar without a refused connection. A listener, its `tls` or its
`upstream_tls` as a whole cannot be added or removed by SIGHUP.
"""


def rows() -> list[Row]:
    """Every setting, in the order of the table, those that group others left out."""
    return [row for _, _, section in sections(Settings) for row in section]


def _reloads(place: str) -> bool:
    first, _, rest = place.partition("[].")
    return rest not in FIXED_LISTENER if first == "listeners" else place not in FIXED


def markdown() -> str:
    """docs/settings.md."""
    parts = [_HEAD]
    for place, text, found in sections(Settings):
        parts.append(f"\n## {f'`{place}`' if place else 'At the top'}\n\n{text}\n")
        if found:
            parts.append("\n| Setting | Value | Default | At SIGHUP | What it is |\n|---|---|---|---|---|\n")
        for row in found:
            name = row.place.rpartition(".")[2]
            reloads = "yes" if _reloads(row.place) else "restart"
            parts.append(cells(f"`{name}`", row.type, row.default, reloads, row.help))
    parts.append(f"\nDialects: `auto`, {', '.join(f'`{name}`' for name in BY_NAME)}.\n")
    return "".join(parts)
