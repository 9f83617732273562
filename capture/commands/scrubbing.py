"""The options ``--scrub`` and ``--scrub-rule``, and what they do to the requests of an export."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from capture.errors import UserError
from capture.export.base import ExportError, Format, Record
from capture.export.scrub import scrubbed_sample
from capture.export.scrub_rules import Rules
from capture.export.scrub_values import Unscrubbable
from capture.export.tfrecord import TFRecordFormat
from capture.rule_files import load_rules
from capture.signature import REST_METHODS
from capture.store.base import Sample

ScrubOption = Annotated[
    bool, typer.Option("--scrub", help="Keep no value that users sent: numbers become 0, strings need a rule.")
]
ScrubRuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scrub-rule",
        help="MODEL:INPUT=RULE, such as 'm:user_id=constant:0'; rules: zero, constant:VALUE, keep, vocabulary:FILE,"
        " example. Repeatable.",
        metavar="RULE",
    ),
]


def scrub_rules(scrub: bool, texts: list[str] | None) -> Rules | None:
    """The rules to scrub by; None where nothing is to be scrubbed. Raises UserError."""
    if not scrub:
        if texts:
            raise UserError("--scrub-rule: is for --scrub; say both")
        return None
    return load_rules(texts or (), "--scrub-rule ")


def scrubbed(form: Format, records: list[tuple[Record, Sample]], rules: Rules | None) -> list[tuple[Record, Sample]]:
    """The records with scrubbed requests. Raises ExportError, naming the first that cannot be."""
    if rules is None:
        return records
    found, failed = [], []
    for record, sample in records:
        method = record.signature.method
        if form.name == TFRecordFormat.name:
            method = REST_METHODS.get(method, method)  # as fitted to the format
        try:
            found.append((record, scrubbed_sample(record.key, method, sample, rules)))
        except Unscrubbable as error:
            failed.append(f"{record.key.digest[:15]} ({record.signature}): {error}")
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ExportError(f"--scrub: cannot scrub {failed[0]}{more}; nothing was written")
    say_unused(rules)
    return found


def say_unused(rules: Rules) -> None:
    """Name every rule that applied to nothing: its name may be misspelt."""
    for name in rules.unused():
        print(f"--scrub-rule {name}: no request has such an input", file=sys.stderr)
