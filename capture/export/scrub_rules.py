"""What a scrubbed request holds in place of its values: rules by model and input, as users write them.

``MODEL:INPUT=RULE``; for a feature of a tf.Example ``MODEL:INPUT/FEATURE=RULE``. ``*`` stands for any model; as the
input for every input of strings, as the feature for every feature of strings, that nothing else says more of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

#: Entries of a vocabulary that are used; more bring nothing to a warm-up.
MAX_VOCABULARY: Final = 1000

ZERO: Final = "zero"
KEEP: Final = "keep"
EXAMPLE: Final = "example"
CONSTANT: Final = "constant"
VOCABULARY: Final = "vocabulary"
_KINDS: Final = f"{ZERO}, {CONSTANT}:VALUE, {KEEP}, {VOCABULARY}:FILE, {EXAMPLE}"
ANY: Final = "*"


class RuleError(ValueError):
    """A rule that is none; the text says what one looks like."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``values`` stand in place of the values, in turn: nothing of a value decides what takes its place."""

    kind: str
    values: tuple[str, ...] = ()


@dataclass(slots=True)
class Rules:
    """Rules by (model, input). ``written`` are they as users wrote them; ``used`` those of them that applied."""

    by_name: dict[tuple[str, str], Rule] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    used: set[tuple[str, str]] = field(default_factory=set)

    def find(self, model: str, name: str) -> Rule | None:
        """The rule of an input or INPUT/FEATURE, the model's own first."""
        for key in ((model, name), (ANY, name)):
            if key in self.by_name:
                self.used.add(key)
                return self.by_name[key]
        return None

    def unused(self) -> list[str]:
        """MODEL:INPUT of every rule that applied to nothing yet."""
        return [f"{model}:{name}" for model, name in self.by_name if (model, name) not in self.used]


def vocabulary_files(texts: Iterable[str]) -> list[str]:
    """The files that these rules name. Raises RuleError."""
    return [value for _, _, kind, value in map(_split, texts) if kind == VOCABULARY]


def read_rules(texts: Iterable[str], vocabularies: Mapping[str, str]) -> Rules:
    """The rules, with the texts of the files that they name, one value a line. Raises RuleError."""
    rules = Rules()
    written = []
    for text in texts:
        model, name, kind, value = _split(text)
        if (model, name) in rules.by_name:
            raise RuleError(f"{text}: {model}:{name} has a rule already")
        values: tuple[str, ...] = (value,) if kind == CONSTANT else ()
        if kind == VOCABULARY:
            values = tuple(vocabularies[value].splitlines()[:MAX_VOCABULARY])
            if not values:
                raise RuleError(f"{text}: {value} is empty; give one value a line")
        rules.by_name[model, name] = Rule(kind, values)
        written.append(text)
    rules.written = tuple(written)
    return rules


def check_rules(texts: Iterable[str], on: bool) -> None:
    """Whether settings may say these, without reading files. Raises RuleError, which names the setting."""
    texts = tuple(texts)
    try:
        read_rules(texts, dict.fromkeys(vocabulary_files(texts), ANY))
    except RuleError as error:
        raise RuleError(f"scrub_rules: {error}") from None
    if texts and not on:
        raise RuleError("scrub_rules: are for scrub: at_capture; say both")


def _split(text: str) -> tuple[str, str, str, str]:
    """(model, input, kind, value)."""
    where, equals, rule = text.partition("=")
    model, colon, name = where.partition(":")
    if not (equals and colon and model and name):
        raise RuleError(f"{text}: no rule; write MODEL:INPUT=RULE, such as 'ranking:user_id=constant:0'")
    kind, with_value, value = rule.partition(":")
    if kind not in (ZERO, KEEP, EXAMPLE, CONSTANT, VOCABULARY) or bool(with_value) != (kind in (CONSTANT, VOCABULARY)):
        raise RuleError(f"{text}: no rule {rule!r}; one of: {_KINDS}")
    if kind == VOCABULARY and not value:
        raise RuleError(f"{text}: names no file; write {VOCABULARY}:FILE, with one value a line")
    return model, name, kind, value
