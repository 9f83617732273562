"""What is said of a request that failed in TensorFlow, where no value of a request may be told.

Texts of kernels quote what they were fed: "Invalid value in tensor used for shape: -7", "Could not parse example input,
value: '...'". So nothing of a text is repeated but the name of the node that failed, and that only where it is a name
of the model's own graph. The texts of servers' own checks, before Session::Run, hold names alone and stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from capture.graph import read_graph
from capture.savedmodel import SavedModelError
from replay.executor.api import OK, Executor, Level, RunResult, Signature

#: As TensorFlow ends the text of a kernel (core/framework/op_kernel.cc, FormatNodeDefForError).
_NODE: Final = re.compile(r"\{\{node ([^\s{}]{1,1000})\}\}")
#: saved_model_warmup_util.cc quotes the record.
_RECORD: Final = re.compile(r"(Failed to parse warmup record): .*", re.DOTALL)
_WITHHELD: Final = "its text may quote values and is withheld"


class NodeNames:
    """The nodes of a model's graph and functions; read when first asked for."""

    def __init__(self, saved_model: Path) -> None:
        self._saved_model = saved_model
        self._ops: dict[str, str] | None = None

    def op(self, name: str) -> str:
        """The op of a node, "" where the graph has none of that name. A node of a function has the names of those that
        call it before its own, with slashes."""
        ops = self._ops = _ops(self._saved_model) if self._ops is None else self._ops
        # The places up to which the name is one of nodes, one within the other; and the op of the last.
        reached = {0: ""}
        for end in [at for at, letter in enumerate(name) if letter == "/"] + [len(name)]:
            for begin in [at for at in reached if at < end]:
                if found := ops.get(name[begin:end]):
                    reached[end + 1] = found
        return reached.get(len(name) + 1, "")


def _ops(saved_model: Path) -> dict[str, str]:
    try:
        graph = read_graph(saved_model)
    except SavedModelError:
        return {}
    functions = [node for function in graph.functions.values() for node in function.nodes]
    return {node.name: node.op for node in [*graph.nodes.values(), *functions]}


def withheld(text: str, nodes: NodeNames) -> str:
    """What may be said of a text that TensorFlow made."""
    for name in _NODE.findall(text):
        if op := nodes.op(name):
            return f"failed at node {name} ({op}); {_WITHHELD}"
    return f"failed in the model; {_WITHHELD}"


def without_record(text: str) -> str:
    """The server's text of a warm-up that failed, without the record that it could not parse."""
    return _RECORD.sub(rf"\1; {_WITHHELD}", text, count=1)


class DiscreetExecutor:
    """An executor that repeats no text of TensorFlow: see :class:`replay.executor.api.Executor`."""

    def __init__(self, executor: Executor, saved_model: Path) -> None:
        self._executor = executor
        self._nodes = NodeNames(saved_model)

    @property
    def level(self) -> Level:
        return self._executor.level

    @property
    def note(self) -> str:
        return self._executor.note

    @property
    def tensorflow_version(self) -> str:
        return self._executor.tensorflow_version

    @property
    def signature_defs(self) -> Mapping[str, Signature]:
        return self._executor.signature_defs

    @property
    def load_seconds(self) -> float:
        return self._executor.load_seconds

    def run(self, feeds: Sequence[tuple[str, bytes]], fetches: Sequence[str], *, values: bool = True) -> RunResult:
        result = self._executor.run(feeds, fetches, values=values)
        return result if result.code == OK else replace(result, message=withheld(result.message, self._nodes))

    def builds(self) -> int | None:
        return self._executor.builds()

    def counter(self, name: str) -> int | None:
        return self._executor.counter(name)

    def close(self) -> None:
        self._executor.close()
