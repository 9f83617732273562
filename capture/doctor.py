"""What a model does that warm-up by names does not cover, or that warm-up would change. Pure.

Which ops: XLA (tensorflow/compiler/jit), TF-TRT, in-graph batching (batch_kernels.cc), cuDNN's choice of an algorithm
for each shape of a convolution, and ops that write state.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from capture.graph import Graph, Node
from capture.signature import SignatureDef, TensorInfo

Severity = Literal["action", "note"]
#: Kind -> (how bad, ops, what it means and what to do). The first that matches counts.
_KINDS: Final[tuple[tuple[str, Severity, str, str], ...]] = (
    ("tensorrt", "action", r"TRTEngineOp", "TensorRT builds an engine for each shape: set level shapes, export with"
     " --batch-sizes"),
    ("batching", "action", r"BatchFunction|Batch", "the graph batches requests itself, and runs with each allowed batch"
     " size: export with --batch-sizes"),
    ("convolution", "action", r"(_Fused)?(Conv2D|Conv3D|DepthwiseConv2dNative)(BackpropInput(V2)?)?|Conv",
     "on a GPU cuDNN looks for an algorithm for each shape: set level shapes, export with --batch-sizes"),
    ("python", "action", r"(Eager)?PyFunc(Stateless)?", "calls Python, which no model server has"),
    ("assigns", "action", r"Assign\w*|Resource(Scatter|Apply|SparseApply)\w*|Scatter(Add|Sub|Update|Nd\w*)",
     "writes variables: warm-up changes what the model has learned; leave its signatures out, or mend the model"),
    ("table", "action", r"LookupTable(Insert|Import|Remove)\w*", "writes hash tables: warm-up leaves its keys in them"),
    ("queue", "action", r"\w*Queue(Enqueue|Dequeue)\w*|IteratorGetNext\w*|StackPush\w*", "takes from or puts into a"
     " queue or an iterator: warm-up uses it up"),
    ("file", "action", r"WriteFile|SaveV2|Save|SaveSlices|\w*Write\w*Summary", "writes files"),
    ("print", "note", r"PrintV2|Print", "prints in each warm-up"),
    ("random", "note", r"Rng\w+|Stateful(Uniform|StandardNormal|TruncatedNormal|RandomBinomial)\w*|Random(Uniform\w*|"
     r"StandardNormal|Gamma|Poisson\w*|Shuffle)|TruncatedNormal|Multinomial", "draws random numbers: warm-up moves on"
     " the generator"),
)  # fmt: skip
_OPS: Final = [(kind, re.compile(ops)) for kind, _, ops, _ in _KINDS]
_XLA: Final = "XLA compiles for each shape, and for each value that it needs at compile time: set level"
#: Kinds for which shapes matter wherever the model runs. (Of convolutions: on a GPU.)
_OF_SHAPES: Final = frozenset({"xla", "tensorrt", "batching"})
_XLA_OP: Final = re.compile(r"XlaLaunch(V2)?|_XlaCompile|_XlaRun")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. ``signatures`` are those that it concerns, ``ops`` how often each op is in them. ``action``: names
    alone are not enough, or warm-up would do harm. ``sizes`` are batch sizes that the graph pads to, ``scalars`` inputs
    whose values may be constants to XLA."""

    severity: Severity
    kind: str
    signatures: tuple[str, ...]
    text: str
    ops: dict[str, int]
    sizes: tuple[int, ...] = ()
    scalars: tuple[str, ...] = ()


def examine(graph: Graph, signatures: Mapping[str, SignatureDef]) -> list[Finding]:
    """All findings, those that need action first."""
    found: dict[str, tuple[set[str], Counter[str], set[int]]] = {}
    for name, one in signatures.items():
        for kind, op, sizes in _seen(graph, one):
            where, ops, batches = found.setdefault(kind, (set(), Counter(), set()))
            where.add(name)
            ops[op] += 1
            batches.update(sizes)
    out = []
    for kind, severity, _, text in (("xla", "action", "", ""), *_KINDS):
        if kind in found:
            where, ops, batches = found[kind]
            scalars: tuple[str, ...] = ()
            if kind == "xla":
                scalars = tuple(
                    sorted({a for s in where for a, i in signatures[s].inputs.items() if i.shape == ()})
                )  # fmt: skip
                level = _level((), scalars)
                if not scalars:
                    level += " (and +values(INPUT) for an input that is such a value)"
                text = f"{_XLA} {level}, export with --batch-sizes"
            if batches:
                text += " " + ",".join(map(str, sorted(batches)))
            out.append(
                Finding(severity, kind, tuple(sorted(where)), text, dict(ops), tuple(sorted(batches)), scalars)
            )  # fmt: skip
    out += _inputs(graph, signatures)
    out += _shared(signatures)
    return sorted(out, key=lambda one: one.severity != "action")


def recommended_level(findings: Iterable[Finding]) -> str:
    """The level (:mod:`capture.levels`) at which such a model is to be captured."""
    shapes = [one for one in findings if one.kind in _OF_SHAPES]
    if not shapes:
        return "names"
    return _level(*(sorted({item for one in shapes for item in getattr(one, name)}) for name in ("sizes", "scalars")))


def _level(sizes: Iterable[int], scalars: Iterable[str]) -> str:
    batch, values = ",".join(map(str, sizes)), ", ".join(scalars)
    return "shapes" + (f"(batch={batch})" if batch else "") + (f"+values({values})" if values else "")


def _seen(graph: Graph, signature: SignatureDef) -> Iterator[tuple[str, str, list[int]]]:
    """(kind, op, batch sizes) of every op that a run of the signature may reach."""
    waiting = [_node_name(info.name) for info in signature.outputs.values()]
    nodes: set[str] = set()
    functions: set[str] = set()
    fed = {_node_name(info.name) for info in signature.inputs.values()}
    calls: list[str] = []
    while waiting:
        name = waiting.pop()
        node = graph.nodes.get(name)
        if node is None or name in nodes or name in fed:
            continue
        nodes.add(name)
        waiting += map(_node_name, node.inputs)
        yield from _judged(node)
        calls += _called(graph, node)
    while calls:
        called = calls.pop()
        function = graph.functions.get(called)
        if function is None or called in functions:
            continue
        functions.add(called)
        if function.compiled:
            yield "xla", "jit_compile", []
        for node in function.nodes:
            yield from _judged(node)
            calls += _called(graph, node)


def _judged(node: Node) -> Iterator[tuple[str, str, list[int]]]:
    if node.compiled or _XLA_OP.fullmatch(node.op):
        yield "xla", node.op, []
    for kind, ops in _OPS:
        if ops.fullmatch(node.op):
            yield kind, node.op, node.sizes
            return


def _called(graph: Graph, node: Node) -> Iterable[str]:
    # In TensorFlow 1 a function is called by a node whose op is its name.
    return [*node.calls, node.op] if node.op in graph.functions else node.calls


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _inputs(graph: Graph, signatures: Mapping[str, SignatureDef]) -> Iterator[Finding]:
    for name, one in sorted(signatures.items()):
        for alias, info in sorted(one.inputs.items()):
            if text := _input(graph, info):
                severity: Severity = "note" if info.name else "action"
                yield Finding(severity, "input", (name,), f"input {alias}: {text}", {})
        if one.defaults and (needed := sorted(one.inputs.keys() - one.defaults)):
            yield Finding("note", "defaults", (name,), f"must be sent, have no default: {', '.join(needed)}", {})


def _input(graph: Graph, info: TensorInfo) -> str:
    if not info.name:
        return "has no tensor name (sparse or composite), and TF Serving cannot feed it"
    if info.shape is None:
        return "its rank is not declared: what its batch is, nothing says; --batch-sizes leaves its records alone"
    node = graph.nodes.get(_node_name(info.name))
    if node is not None and node.op == "Placeholder" and node.shape is not None and node.shape != info.shape:
        return f"declared {list(info.shape)}, but the graph's placeholder is {list(node.shape)}: trust the traffic"
    return ""


def _shared(signatures: Mapping[str, SignatureDef]) -> Iterator[Finding]:
    by_feeds: dict[frozenset[str], list[str]] = {}
    for name, one in sorted(signatures.items()):
        if feeds := frozenset(info.name for info in one.inputs.values()):
            by_feeds.setdefault(feeds, []).append(name)
    for names in by_feeds.values():
        if len(names) > 1:
            text = "feed the same tensors: requests that also fetch the same share one record (export --saved-model)"
            yield Finding("note", "shared", tuple(names), text, {})
