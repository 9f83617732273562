"""Rules of scrubbing with the vocabularies that they name, read from their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capture.config import WorkerConfig
from capture.errors import UserError
from capture.export.scrub_rules import RuleError, Rules, read_rules, vocabulary_files
from capture.scrubbing import first_unscrubbed
from capture.store.base import Store, shown_store


def capture_rules(config: WorkerConfig, store: Store) -> Rules | None:
    """What a worker scrubs by, None for nothing. Raises UserError where the store holds what it would have changed."""
    if config.scrub == "off":
        return None
    rules = load_rules(config.scrub_rules, "capture.scrub_rules: ")
    if digest := first_unscrubbed(store, rules):
        raise UserError(
            f"store {shown_store(config.store)}: {digest} was stored unscrubbed, or by other rules; name another store,"
            " or delete it"
        )
    return rules


def load_rules(texts: Sequence[str], place: str) -> Rules:
    """The rules. Raises UserError; its text begins with ``place``."""
    try:
        found = {name: Path(name).read_text() for name in vocabulary_files(texts)}
        return read_rules(texts, found)
    except RuleError as error:
        raise UserError(f"{place}{error}") from None
    except OSError as error:
        raise UserError(f"{place}{error.filename}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place}a vocabulary is no UTF-8 text; give one value a line") from None
