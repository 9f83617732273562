"""The graph in ``saved_model.pb`` as far as it tells what warm-up needs: node ops, a few attributes, who calls whom.

Read without TensorFlow, field by field (tensorflow/core/framework/{graph,node_def,function,attr_value}.proto). Tensors,
which are nearly all of it, are skipped: a node is read whole only where it is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from google.protobuf.message import DecodeError

from capture.savedmodel import MAX_FIELD_BYTES, SERVE_TAGS, SavedModelError, walk
from capture.schema import messages
from capture.schema.wire import LENGTH, VARINT, WireError, fields, read_varint

#: A node of more bytes holds a constant; its large attributes are passed over.
MAX_NODE_BYTES: Final = 1 << 20
#: One attribute of such a node, and the attributes of a function.
MAX_ATTR_BYTES: Final = 64 << 10
#: Nodes of graph and functions together. Large production graphs have some 100,000; each takes about 1 KB here.
MAX_NODES: Final = 2_000_000

# Field numbers: SavedModel, MetaGraphDef, GraphDef, FunctionDefLibrary, FunctionDef, NodeDef, AttrValue (and its list).
_META_GRAPHS, _META_INFO, _GRAPH = 2, 1, 2
_NODE, _LIBRARY, _FUNCTION = 1, 2, 1
_SIGNATURE, _NODE_DEF, _FUNCTION_ATTR = 1, 3, 5
_NAME, _OP, _INPUT, _ATTR = 1, 2, 3, 5
_LIST, _INTS, _BOOL, _SHAPE, _FUNC, _LIST_FUNC = 1, 3, 5, 7, 10, 9

MUST_COMPILE: Final = "_XlaMustCompile"
_SIZES: Final = "allowed_batch_sizes"


@dataclass(slots=True)
class Node:
    """One node. ``calls`` are the functions that its attributes name; ``compiled``: it must be compiled by XLA;
    ``sizes`` are a BatchFunction's allowed batch sizes; ``shape`` a placeholder's dimensions, None for an unknown rank
    or where it says none."""

    name: str = ""
    op: str = ""
    inputs: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    compiled: bool = False
    sizes: list[int] = field(default_factory=list)
    shape: tuple[int, ...] | None = None


@dataclass(slots=True)
class Function:
    """A function of the library."""

    nodes: list[Node] = field(default_factory=list)
    compiled: bool = False


@dataclass(slots=True)
class Graph:
    """A meta graph's nodes and functions, by name."""

    nodes: dict[str, Node] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    count: int = 0


def read_graph(directory: Path, tags: Iterable[str] = SERVE_TAGS) -> Graph:
    """The graph of the meta graph with exactly these tags. Raises SavedModelError."""
    path, wanted = directory / "saved_model.pb", frozenset(tags)
    try:
        with path.open("rb") as file:
            for number, wire_type, length in walk(file, path.stat().st_size):
                end = file.tell() + length
                if number == _META_GRAPHS and wire_type == LENGTH:
                    found, places = _meta_graph(file, end)
                    if found == wanted:
                        graph = Graph()
                        for start, stop in places:
                            file.seek(start)
                            _graph(file, stop, graph)
                        return graph
                file.seek(end)
    except OSError as error:
        raise SavedModelError(f"{path}: {error.strerror}") from None
    except (WireError, DecodeError, UnicodeDecodeError) as error:
        raise SavedModelError(f"{path}: its graph cannot be read ({error}); was it copied completely?") from None
    raise SavedModelError(f"{path}: no meta graph with tags {{{', '.join(sorted(wanted))}}}")


def _meta_graph(file: BinaryIO, end: int) -> tuple[frozenset[str], list[tuple[int, int]]]:
    """Its tags, and where its graph stands."""
    info, places = messages.MetaInfoDef(), []
    for number, wire_type, length in walk(file, end):
        at = file.tell()
        if number == _META_INFO and wire_type == LENGTH and length <= MAX_FIELD_BYTES:
            info.MergeFromString(file.read(length))
        elif number == _GRAPH and wire_type == LENGTH:
            places.append((at, at + length))
        file.seek(at + length)
    return frozenset(info.tags), places


def _graph(file: BinaryIO, end: int, graph: Graph) -> None:
    for number, _, length in _messages(file, end):
        stop = file.tell() + length
        if number == _NODE:
            node = _node(file, length, graph)
            graph.nodes[node.name] = node
        elif number == _LIBRARY:
            for inner, _, size in _messages(file, stop):
                if inner == _FUNCTION:
                    _function(file, file.tell() + size, graph)


def _function(file: BinaryIO, end: int, graph: Graph) -> None:
    name, function = "", Function()
    for number, _, length in _messages(file, end):
        if number == _NODE_DEF:
            function.nodes.append(_node(file, length, graph))
        elif number == _SIGNATURE and length <= MAX_NODE_BYTES:
            name = _text(file.read(length), _NAME)
        elif number == _FUNCTION_ATTR and length <= MAX_ATTR_BYTES:
            holder = Node()
            _attribute(file.read(length), holder)
            function.compiled |= holder.compiled
    graph.functions[name] = function


def _messages(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """The length-delimited fields up to ``end``; moves past each."""
    for number, wire_type, length in walk(file, end):
        stop = file.tell() + length
        if wire_type == LENGTH:
            yield number, wire_type, length
        file.seek(stop)


def _node(file: BinaryIO, length: int, graph: Graph) -> Node:
    graph.count += 1
    if graph.count > MAX_NODES:
        raise WireError(f"more than {MAX_NODES} nodes")
    node = Node()
    if length <= MAX_NODE_BYTES:
        data = file.read(length)
        for part in fields(data):
            if part.wire_type == LENGTH:
                _part(part.number, data[part.value : part.end], node)
    else:
        for number, _, size in _messages(file, file.tell() + length):
            if size <= MAX_ATTR_BYTES:
                _part(number, file.read(size), node)
    return node


def _part(number: int, value: bytes, node: Node) -> None:
    if number == _NAME:
        node.name = value.decode()
    elif number == _OP:
        node.op = value.decode()
    elif number == _INPUT:
        node.inputs.append(value.decode())
    elif number == _ATTR:
        _attribute(value, node)


def _attribute(entry: bytes, node: Node) -> None:
    """One entry of the map of attributes."""
    key = value = b""
    for part in fields(entry):
        if part.wire_type == LENGTH and part.number == 1:
            key = entry[part.value : part.end]
        elif part.wire_type == LENGTH and part.number == 2:
            value = entry[part.value : part.end]
    for part in fields(value):
        if part.number == _FUNC and part.wire_type == LENGTH:
            node.calls.append(_text(value[part.value : part.end], _NAME))
        elif part.number == _BOOL and part.wire_type == VARINT and key == MUST_COMPILE.encode():
            node.compiled = bool(read_varint(value, part.value, part.end)[0])
        elif part.number == _SHAPE and part.wire_type == LENGTH and key == b"shape":
            shape = messages.TensorShape.FromString(value[part.value : part.end])
            node.shape = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
        elif part.number == _LIST and part.wire_type == LENGTH:
            _listed(value[part.value : part.end], key.decode(), node)


def _listed(value: bytes, key: str, node: Node) -> None:
    for part in fields(value):
        if part.number == _LIST_FUNC and part.wire_type == LENGTH:
            node.calls.append(_text(value[part.value : part.end], _NAME))
        elif part.number == _INTS and key == _SIZES:
            at = part.value
            while at < part.end:
                size, at = read_varint(value, at, part.end)
                node.sizes.append(size)


def _text(message: bytes, number: int) -> str:
    """The last string of this field."""
    found = ""
    for part in fields(message):
        if part.number == number and part.wire_type == LENGTH:
            found = message[part.value : part.end].decode()
    return found
