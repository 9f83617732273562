"""What an executor is: the types that both implementations share.

An executor runs what TF Serving would run on one SavedModel: textual tensor names in, textual tensor names out. It
knows nothing of aliases, filters or defaults; that is ``replay/predict.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from capture.errors import UserError
from capture.tensor_info import TensorInfo

#: ``executor``: LoadSavedModel and Session::Run in C++, builds counted. ``runs``: the same session behind the C API.
Level = Literal["executor", "runs"]

#: The counter of graph builds (TensorFlow, core/framework/metrics.cc). Process-wide.
GRAPH_BUILDS = "/tensorflow/core/graph_build_calls"
#: The counter of clusters that XLA compiled (core/framework/metrics.cc). Process-wide.
XLA_COMPILATIONS = "/tensorflow/core/xla_compilations"

#: The integer metrics that are read and shown; the registry holds many more.
COUNTERS = (
    GRAPH_BUILDS,
    "/tensorflow/core/graph_build_time_usecs",
    "/tensorflow/core/graph_runs",
    "/tensorflow/core/direct_session_runs",
    "/tensorflow/cc/saved_model/load_attempt_count",
    "/tensorflow/cc/saved_model/load_latency",
    XLA_COMPILATIONS,
    "/tensorflow/core/xla_compilation_time_usecs",
)

StatusCode = int  #: absl::StatusCode and gRPC share these numbers
#: The canonical names, by number.
CODE_NAMES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
OK: StatusCode = 0
UNKNOWN: StatusCode = 2
INVALID_ARGUMENT: StatusCode = 3
NOT_FOUND: StatusCode = 5
FAILED_PRECONDITION: StatusCode = 9
UNIMPLEMENTED: StatusCode = 12
DATA_LOSS: StatusCode = 15


class ExecutorError(UserError):
    """A model cannot be loaded or an executor not be had. The text is one line, for users."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One SignatureDef. Aliases map to tensors; ``defaults`` maps input aliases to serialized TensorProto."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    method_name: str
    defaults: Mapping[str, bytes]
    #: The SignatureDef as it stands in the model, for GetModelMetadata.
    serialized: bytes


@dataclass(frozen=True, slots=True)
class RunResult:
    """One Session::Run. ``outputs`` are serialized TensorProto in the order of the fetches, empty on failure or when no
    values were asked for. ``seconds`` is the wall time of the TensorFlow call alone. ``bad_feed`` is the place of the
    feed that ``Tensor::FromProto`` refused, None otherwise."""

    code: StatusCode
    message: str
    outputs: tuple[bytes, ...]
    seconds: float
    bad_feed: int | None = None


class Executor(Protocol):
    """A loaded SavedModel. Thread-safe: runs may overlap, as they do in the server."""

    @property
    def level(self) -> Level: ...

    @property
    def note(self) -> str:
        """Why the level is not ``executor``; empty if it is."""

    @property
    def tensorflow_version(self) -> str: ...

    @property
    def signature_defs(self) -> Mapping[str, Signature]: ...

    @property
    def load_seconds(self) -> float: ...

    def run(self, feeds: Sequence[tuple[str, bytes]], fetches: Sequence[str], *, values: bool = True) -> RunResult:
        """Run once. ``feeds`` are (tensor name, serialized TensorProto); order and duplicates are passed on as
        given. With ``values=False`` the fetched tensors are computed but not returned. What the model says is never
        raised; a closed executor raises ExecutorError."""

    def builds(self) -> int | None:
        """Graphs built by this process since the model was loaded (a load itself builds some); None if unknown. The
        counter is TensorFlow's and process-wide: use one executor per process where this is to mean anything."""

    def counter(self, name: str) -> int | None:
        """One integer metric of TensorFlow's registry, summed over its labels, 0 if it does not exist (yet); None if it
        cannot be read."""

    def close(self) -> None:
        """Wait for running calls and free the session. Later calls raise ExecutorError."""


def parse_signature(serialized: bytes) -> Signature:
    """A serialized SignatureDef as plain data."""
    from replay import tf_protos

    definition = tf_protos.load("tensorflow.core.protobuf.meta_graph_pb2").SignatureDef.FromString(serialized)

    def infos(tensors: Mapping[str, object]) -> dict[str, TensorInfo]:
        return {alias: _tensor_info(tensors[alias]) for alias in sorted(tensors)}

    return Signature(
        inputs=infos(definition.inputs),
        outputs=infos(definition.outputs),
        method_name=definition.method_name,
        defaults={alias: definition.defaults[alias].SerializeToString() for alias in sorted(definition.defaults)},
        serialized=serialized,
    )


def _tensor_info(info: object) -> TensorInfo:
    shape = info.tensor_shape  # type: ignore[attr-defined]
    dims = None if shape.unknown_rank else tuple(int(d.size) for d in shape.dim)
    return TensorInfo(info.name, int(info.dtype), dims)  # type: ignore[attr-defined]


def check_directory(directory: str | os.PathLike[str]) -> str:
    """The directory as text, or ExecutorError if it cannot hold a SavedModel."""
    path = os.fspath(directory)
    if not os.path.isdir(path):
        raise ExecutorError(f"{path}: no such directory")
    if not any(os.path.isfile(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise ExecutorError(f"{path}: no saved_model.pb in it, so it is no SavedModel")
    return path


def one_line(text: str) -> str:
    """The first line of a message, without surrounding blanks."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
