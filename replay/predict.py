"""From a Predict request to feeds and fetches, by TF Serving's rules, and nothing else.

The rules and their texts are those of ``servables/tensorflow/predict_util.cc`` (PreProcessPrediction) and TensorFlow's
``cc/saved_model/util.cc`` (GetInputValues). Pure: an executor runs the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from capture.signature import DEFAULT_SIGNATURE
from replay.executor import api
from replay.executor.api import Signature


class RequestError(Exception):
    """A request that the server refuses, with the canonical code and the server's own text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Serializable(Protocol):
    """A TensorProto of any protobuf pool."""

    def SerializeToString(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """One Session::Run. ``feeds`` belong to ``input_aliases`` and ``fetches`` to ``output_aliases``, place by place."""

    feeds: Sequence[tuple[str, bytes]]
    fetches: Sequence[str]
    input_aliases: Sequence[str]
    output_aliases: Sequence[str]


def find_signature(signatures: Mapping[str, Signature], name: str) -> tuple[str, Signature]:
    """The signature that a request asks for. Raises RequestError(FAILED_PRECONDITION)."""
    wanted = name or DEFAULT_SIGNATURE
    if wanted not in signatures:
        raise RequestError(api.FAILED_PRECONDITION, f'Serving signature key "{wanted}" not found.')
    return wanted, signatures[wanted]


def plan_predict(signature: Signature, inputs: Mapping[str, Serializable], output_filter: Sequence[str]) -> Plan:
    """What the server runs for these aliases. Raises RequestError(INVALID_ARGUMENT)."""
    _check_input_size(signature, inputs)
    feeds: list[tuple[str, bytes]] = []
    seen = 0
    for alias, info in signature.inputs.items():
        if alias in inputs:
            seen += 1
            feeds.append((info.name, inputs[alias].SerializeToString()))
        elif alias in signature.defaults:
            feeds.append((info.name, signature.defaults[alias]))
        else:
            raise RequestError(
                api.INVALID_ARGUMENT,
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {{{_join(inputs)}}}, or default input alias set: "
                f"{_join(signature.defaults)}",
            )
    if inputs and seen != len(inputs):
        used = [alias for alias in inputs if alias in signature.inputs]
        raise RequestError(
            api.INVALID_ARGUMENT,
            f"Inputs contains invalid name. Used request inputs: {_join(used)}, request input: {_join(inputs)}",
        )
    outputs = _outputs(signature, output_filter)
    return Plan(feeds, [signature.outputs[alias].name for alias in outputs], tuple(signature.inputs), outputs)


def _check_input_size(signature: Signature, inputs: Mapping[str, Serializable]) -> None:
    given, wanted = len(inputs), len(signature.inputs)
    if given > wanted or (given < wanted and not signature.defaults):
        extra = set(inputs) - set(signature.inputs)
        missing = set(signature.inputs) - set(inputs)
        raise RequestError(
            api.INVALID_ARGUMENT,
            f"input size does not match signature: {given}!={wanted} len({{{_join(inputs)}}}) != "
            f"len({{{_join(signature.inputs)}}}). Sent extra: {{{_join(extra)}}}. "
            f"Missing but required: {{{_join(missing)}}}.",
        )


def _outputs(signature: Signature, output_filter: Sequence[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            raise RequestError(
                api.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{_join(signature.outputs)}}}.",
            )
        if alias in seen:
            raise RequestError(api.INVALID_ARGUMENT, f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(output_filter) or tuple(signature.outputs)


def _join(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
