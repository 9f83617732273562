"""One form for the log lines of all processes: ``time=... level=... process=... msg=... key=value``."""

from __future__ import annotations

import datetime
import logging


def value(text: object) -> str:
    """One value of a key=value line: quoted where it would not read back as one word."""
    word = str(text)
    if word and not any(c in word for c in ' "\\=') and word.isprintable():
        return word
    return '"' + word.encode("unicode_escape").decode().replace('"', '\\"') + '"'


class LineFormatter(logging.Formatter):
    """``logger.info("ready", extra={"fields": {"listeners": "..."}})`` becomes one line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        parts = [
            f"time={when.replace('+00:00', 'Z')}",
            f"level={record.levelname.lower()}",
            f"process={self._process}",
            f"msg={value(record.getMessage())}",
        ]
        fields: dict[str, object] = getattr(record, "fields", {})
        parts += [f"{key}={value(field)}" for key, field in fields.items()]
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(f"error={value(self.formatException(record.exc_info))}")
        return " ".join(parts)
