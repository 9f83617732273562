"""Requests without the values that users sent: every number and string replaced, and all that makes the wire signature
kept: model, method, names of inputs and outputs, dtypes, shapes.

Numbers become zero. Strings have no value that suits every model (an empty one breaks decoders and parsers), so they
need a rule, unless every one of them is a tf.Example, which is made anew. A request is made from what is understood of
it; unknown fields are left out. That the signature is the same is checked by reading the result with its dialect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from google.protobuf.message import DecodeError

from capture.dialects.base import Route, Unreadable
from capture.dialects.eas_onnx import ELEMENTS
from capture.dialects.table import stored_route
from capture.dialects.tfserving_calls import EXAMPLES_INPUT
from capture.export.scrub_examples import NoExample, rebuilt
from capture.export.scrub_rules import ANY, EXAMPLE, KEEP, ZERO, Rule, Rules
from capture.export.scrub_values import ARRAY, TENSOR, Layout, Unscrubbable, Values, bounded, in_content, number, plain
from capture.schema import messages
from capture.schema.tensor_bytes import DT_STRING
from capture.schema.wire import LENGTH, WireError, fields, length_delimited
from capture.signature import REST_METHODS
from capture.store.base import RecordKey, Sample

#: Characters of an input's name in a text that is counted by.
MAX_NAME_CHARS: Final = 100
#: The key and the value of a map's entry; a NamedTensor's name and tensor are the same fields.
_KEY, _VALUE = 1, 2


def scrubbed_sample(key: RecordKey, method: str, sample: Sample, rules: Rules) -> Sample:
    """The sample, a request of ``method``, with its values replaced: also those that its compressed form and its path
    held. Raises Unscrubbable."""
    owner = key.owner
    # A path says how a request came; one that was converted since is what ``method`` says.
    route = stored_route(owner.family, owner.model, "", method)
    if method in REST_METHODS:
        raise Unscrubbable("a REST request: it can be scrubbed in a tfrecord, as the gRPC request that is made of it")
    if route is None:
        raise Unscrubbable(f"requests of {owner.family} cannot be scrubbed")
    body, headers = scrub(route, sample.body, rules, owner.model), scrubbed_headers(route, sample.headers)
    return replace(sample, body=body, wire_body=None, headers=headers, path=scrubbed_path(route, sample.path))


def scrubbed_path(route: Route, path: str) -> str:
    """The path where the dialect itself made it; "" where it may hold anything (behind a custom URL of EAS)."""
    return path if route.dialect.framing == "grpc" or path == f"/api/predict/{route.model}" else ""


def scrubbed_headers(route: Route, headers: dict[str, str]) -> dict[str, str]:
    """Without the coding of a body that is kept uncoded."""
    if route.dialect.framing == "grpc" or "content-encoding" not in headers:
        return headers
    return {name: value for name, value in headers.items() if name != "content-encoding"}


def scrub(route: Route, body: bytes, rules: Rules, model: str) -> bytes:
    """The body with every value replaced by these rules. Raises Unscrubbable where one has no rule, or the body is of a
    kind that cannot be scrubbed."""
    family = route.dialect.family
    maker = _MAKERS.get((family, route.method))
    if maker is None:
        raise Unscrubbable(f"requests of {route.dialect.name} {route.method} cannot be scrubbed")
    try:
        before = route.dialect.read(route, body)
        made = maker(body, _Scrubber(rules, model))
        after = route.dialect.read(route, made)
    except (WireError, DecodeError, Unreadable) as error:
        raise Unscrubbable(f"its bytes cannot be read ({error})") from None
    if (before.signature, before.tensors) != (after.signature, after.tensors):
        raise Unscrubbable("scrubbed it would be another signature; no rule can mend that")
    return made


class _Scrubber:
    """Replaces the values of one request's inputs."""

    def __init__(self, rules: Rules, model: str) -> None:
        self._rules = rules
        self._model = model

    def tensor(self, name: str, proto: bytes, layout: Layout) -> bytes:
        """The tensor message made anew. Raises Unscrubbable, naming the input."""
        rule = self._rules.find(self._model, name)
        try:
            values = Values(proto, layout)
            if rule is not None and rule.kind == KEEP:
                return values.kept()
            if values.dtype == DT_STRING:
                return values.with_each(self._strings(name, values.strings(), rule))
            return values.numbers(self._numbers(rule))
        except Unscrubbable as error:
            raise Unscrubbable(f"input {name[:MAX_NAME_CHARS]}: {error}") from None

    def raw(self, name: str, count: int, dtype: int, data: bytes) -> bytes:
        """``count`` numbers as little endian bytes."""
        rule = self._rules.find(self._model, name)
        if rule is not None and rule.kind == KEEP:
            return data
        try:
            return bounded([in_content(number(text, dtype), dtype) for text in self._numbers(rule)], count)
        except Unscrubbable as error:
            raise Unscrubbable(f"input {name[:MAX_NAME_CHARS]}: {error}") from None

    def example(self, name: str, example: bytes, *, strict: bool = False) -> bytes:
        """A tf.Example of the input ``name``, made anew."""

        def rule(feature: str) -> Rule | None:
            return self._rules.find(self._model, f"{name}/{feature}")

        return rebuilt(example, rule, strict=strict)

    def keeps_examples(self, name: str) -> bool:
        """Whether the input, which holds tf.Examples, is to stay as it is. Raises Unscrubbable."""
        rule = self._rules.find(self._model, name)
        if rule is not None and rule.kind not in (KEEP, EXAMPLE):
            raise Unscrubbable(
                f"input {name}: holds tf.Examples; its rule is example or keep, that of a feature"
                f" {self._model}:{name}/FEATURE=..."
            )
        return rule is not None and rule.kind == KEEP

    def _numbers(self, rule: Rule | None) -> Sequence[str]:
        if rule is not None and rule.kind == EXAMPLE:
            raise Unscrubbable("holds numbers, no tf.Examples; its rule is zero, constant, vocabulary or keep")
        return ("0",) if rule is None or rule.kind == ZERO else rule.values

    def _strings(self, name: str, given: list[bytes], rule: Rule | None) -> Sequence[bytes]:
        """What to put in place of these strings, in turn."""
        if not given:
            return ()
        if rule is None or rule.kind == EXAMPLE:
            try:
                return [self.example(name, one, strict=True) for one in given]
            except NoExample:
                if rule is not None:
                    raise Unscrubbable("holds strings that are no tf.Examples; say constant:VALUE") from None
            rule = self._rules.find(self._model, ANY)
        if rule is None or rule.kind == ZERO:
            what = "has no rule" if rule is None else "has no zero"
            raise Unscrubbable(
                f"holds strings, which {what}; say '{self._model}:{name[:MAX_NAME_CHARS]}=constant:VALUE' (or"
                " vocabulary:FILE, keep)"
            )
        if rule.kind == KEEP:
            return given
        if rule.kind == EXAMPLE:
            raise Unscrubbable("holds strings that are no tf.Examples; say constant:VALUE")
        return [value.encode() for value in rule.values]


# --- messages ---------------------------------------------------------------------------------------------------------


def _named(body: bytes, number: int, layout: Layout, scrubber: _Scrubber, *, once: bool) -> bytes:
    """The entries of a map of tensors, or of a list of named ones, made anew. ``once``: of equal names the last one
    counts, as in a map."""
    entries: list[tuple[bytes, bytes]] = []
    for field in fields(body):
        if field.number != number or field.wire_type != LENGTH:
            continue
        key = value = b""
        for part in fields(body, field.value, field.end):
            if part.number == _KEY and part.wire_type == LENGTH:
                key = body[part.value : part.end]
            elif part.number == _VALUE and part.wire_type == LENGTH:
                # Occurring twice they merge, and concatenation is what merging means on the wire.
                value += body[part.value : part.end]
        entries.append((key, value))
    if once:
        entries = list(dict(entries).items())
    return b"".join(
        length_delimited(
            number,
            length_delimited(_KEY, key)
            + length_delimited(_VALUE, scrubber.tensor(key.decode("utf-8", "replace"), value, layout)),
        )
        for key, value in entries
    )


def _rest(message: Any, body: bytes, without: frozenset[int]) -> bytes:
    """What the message's schema knows of it, without these fields."""
    return plain(
        message.FromString(b"".join(body[part.start : part.end] for part in fields(body) if part.number not in without))
    )


def _predict(body: bytes, scrubber: _Scrubber) -> bytes:
    return _rest(messages.PredictRequest, body, frozenset({2})) + _named(body, 2, TENSOR, scrubber, once=True)


def _session_run(body: bytes, scrubber: _Scrubber) -> bytes:
    return _rest(messages.SessionRunRequest, body, frozenset({2})) + _named(body, 2, TENSOR, scrubber, once=False)


def _classify(body: bytes, scrubber: _Scrubber) -> bytes:
    """Classify and Regress."""
    return _rest(messages.ExamplesRequestHead, body, frozenset({2})) + _input(body, scrubber)


def _multi_inference(body: bytes, scrubber: _Scrubber) -> bytes:
    return _rest(messages.MultiInferenceRequestHead, body, frozenset({2})) + _input(body, scrubber)


def _input(body: bytes, scrubber: _Scrubber) -> bytes:
    """The tf.Examples of such a request. Of example_list (1) and example_list_with_context (2) the later one counts,
    and parts of one are put together (:func:`capture.dialects.tfserving_calls.count_examples`)."""
    kind, listed, there = 0, b"", False
    for field in fields(body):
        if field.number != 2 or field.wire_type != LENGTH:
            continue
        there = True
        for part in fields(body, field.value, field.end):
            if part.number in (1, 2) and part.wire_type == LENGTH:
                if part.number != kind:
                    kind, listed = part.number, b""
                listed += body[part.value : part.end]
    if not there:
        return b""
    keep = scrubber.keeps_examples(EXAMPLES_INPUT)
    out, context, with_context = [], b"", False
    for part in fields(listed):
        if part.wire_type != LENGTH:
            continue
        if part.number == 1:
            example = listed[part.value : part.end]
            out.append(length_delimited(1, example if keep else scrubber.example(EXAMPLES_INPUT, example)))
        elif part.number == kind == 2:
            context += listed[part.value : part.end]
            with_context = True
    if with_context:
        out.append(length_delimited(2, context if keep else scrubber.example(EXAMPLES_INPUT, context)))
    return length_delimited(2, length_delimited(kind, b"".join(out)) if kind else b"")


def _eas_tensorflow(body: bytes, scrubber: _Scrubber) -> bytes:
    # Tensors first: by its first byte a body is told from a compressed one.
    return _named(body, 2, ARRAY, scrubber, once=True) + _rest(messages.EasPredictRequest, body, frozenset({2}))


def _eas_pytorch(body: bytes, scrubber: _Scrubber) -> bytes:
    listed = [part for part in fields(body) if part.number == 1 and part.wire_type == LENGTH]
    by_place = [
        length_delimited(1, scrubber.tensor(f"[{place}]", body[part.value : part.end], ARRAY))
        for place, part in enumerate(listed)
    ]
    named = _named(body, 3, ARRAY, scrubber, once=True)
    return b"".join(by_place) + named + _rest(messages.TorchPredictRequest, body, frozenset({1, 3}))


def _eas_onnx(body: bytes, scrubber: _Scrubber) -> bytes:
    made = messages.OnnxDataProto()
    for given in messages.OnnxDataProto.FromString(body).tensors:
        dtype, size = ELEMENTS[given.data_type]
        data = scrubber.raw(given.name, len(given.raw_data) // size, dtype, given.raw_data)
        made.tensors.add(name=given.name, dims=given.dims, data_type=given.data_type, raw_data=data)
    serialized: bytes = made.SerializeToString()
    return serialized


#: (family, method) -> how its requests are made anew.
_MAKERS: Final[dict[tuple[str, str], Callable[[bytes, _Scrubber], bytes]]] = {
    ("tfserving", "Predict"): _predict,
    ("tfserving", "Classify"): _classify,
    ("tfserving", "Regress"): _classify,
    ("tfserving", "MultiInference"): _multi_inference,
    ("tfserving", "SessionRun"): _session_run,
    ("eas", "predict"): _eas_tensorflow,
    ("eas-pytorch", "predict"): _eas_pytorch,
    ("eas-onnx", "predict"): _eas_onnx,
}
