"""Without a C++ compiler: the same DirectSession through the C API that comes with TensorFlow's Python package.

``TF_SessionRun_wrapper`` passes feeds and fetches on as given. Python's own ``Session.run`` and ``make_callable`` do
not: they collapse duplicate fetches, accept fetching a fed tensor and check shapes themselves. Graph builds cannot be
read from here.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from replay.executor import api
from replay.executor.api import ExecutorError, Level, RunResult, Signature, check_directory, one_line, parse_signature

#: numpy's names of the dtypes whose values do not travel in ``int_val`` (core/framework/tensor.cc).
_TYPED_FIELD = {
    "float32": "float_val",
    "float64": "double_val",
    "object": "string_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}


class FallbackExecutor:
    """See :class:`replay.executor.api.Executor`. Importing TensorFlow takes about nine seconds."""

    level: Level = "runs"

    def __init__(
        self, directory: str | os.PathLike[str], *, tags: Sequence[str], libraries: Sequence[str], note: str
    ) -> None:
        path = check_directory(directory)
        self.note = note
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            import numpy
            import tensorflow as tf
            from tensorflow.core.framework import tensor_pb2
            from tensorflow.python.client import pywrap_tf_session
        except ImportError as error:
            raise ExecutorError(f"TensorFlow does not import: {one_line(str(error))}") from None
        self._tf: Any = tf
        self._numpy: Any = numpy
        self._tensor_proto: Any = tensor_pb2.TensorProto
        self._run: Any = pywrap_tf_session.TF_SessionRun_wrapper
        self._errors: type[Exception] = tf.errors.OpError
        self.tensorflow_version: str = tf.version.VERSION
        self._graph: Any = tf.Graph()
        self._session: Any = tf.compat.v1.Session(graph=self._graph)
        start = time.perf_counter()
        try:
            for library in libraries:
                tf.load_op_library(os.fspath(library))
            with self._graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, list(tags), path)
        except (self._errors, OSError, RuntimeError, ValueError) as error:
            self._session.close()
            raise ExecutorError(f"{path}: {one_line(str(error))}") from None
        self.load_seconds: float = time.perf_counter() - start
        self.signature_defs: Mapping[str, Signature] = MappingProxyType(
            {name: parse_signature(value.SerializeToString()) for name, value in meta_graph.signature_def.items()}
        )
        self._running = 0
        self._closed = False
        self._idle = threading.Condition()

    def run(self, feeds: Sequence[tuple[str, bytes]], fetches: Sequence[str], *, values: bool = True) -> RunResult:
        with self._idle:
            if self._closed:
                raise ExecutorError("the executor is closed")
            self._running += 1
        try:
            return self._run_once(feeds, fetches, values=values)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _run_once(self, feeds: Sequence[tuple[str, bytes]], fetches: Sequence[str], *, values: bool) -> RunResult:
        fed = {}
        for place, (name, proto) in enumerate(feeds):
            value = self._value(proto)
            if value is None:
                return RunResult(api.INVALID_ARGUMENT, f"tensor parsing error: {name}", (), 0.0, place)
            fed[name] = value
        try:
            inputs = {self._output(name): value for name, value in fed.items()}
            outputs = [self._output(name) for name in fetches]
        except (KeyError, ValueError) as error:
            return RunResult(api.INVALID_ARGUMENT, one_line(str(error)).strip("'\""), (), 0.0)
        start = time.perf_counter()
        try:
            arrays = self._run(self._session._session, None, inputs, outputs, [], None)
        except self._errors as error:
            seconds = time.perf_counter() - start
            return RunResult(error.error_code, error.message, (), seconds)  # type: ignore[attr-defined]
        seconds = time.perf_counter() - start
        protos = tuple(self._serialize(array) for array in arrays) if values else ()
        return RunResult(api.OK, "", protos, seconds)

    def _value(self, proto: bytes) -> Any | None:
        """The fed array by the rules of ``Tensor::FromProto``, which the ParseTensor op calls; None if it refuses."""
        message = self._tensor_proto.FromString(proto)
        try:
            return self._tf.io.parse_tensor(proto, self._tf.dtypes.as_dtype(message.dtype)).numpy()
        except (self._errors, TypeError):
            return None

    def _output(self, name: str) -> Any:
        full = name if ":" in name else f"{name}:0"
        return self._graph.get_tensor_by_name(full)._as_tf_output()

    def _serialize(self, array: Any) -> bytes:
        """A TensorProto with its values in the typed field, as ``Tensor::AsProtoField`` writes it."""
        # A scalar string arrives as bytes; numpy's own bytes type would strip trailing zeros.
        array = self._numpy.asarray(array, dtype=object if isinstance(array, bytes) else None)
        proto = self._tensor_proto(dtype=self._tf.dtypes.as_dtype(array.dtype).as_datatype_enum)
        proto.tensor_shape.SetInParent()
        for size in array.shape:
            proto.tensor_shape.dim.add(size=size)
        flat = array.ravel()
        kind = array.dtype.name
        if kind in ("float16", "bfloat16"):
            proto.half_val.extend(flat.view(self._numpy.uint16).tolist())
        elif kind in ("complex64", "complex128"):
            parts = flat.view("float32" if kind == "complex64" else "float64").tolist()
            (proto.scomplex_val if kind == "complex64" else proto.dcomplex_val).extend(parts)
        else:
            getattr(proto, _TYPED_FIELD.get(kind, "int_val")).extend(flat.tolist())
        return bytes(proto.SerializeToString())

    def builds(self) -> None:
        return None

    def counter(self, name: str) -> None:
        return None

    def close(self) -> None:
        with self._idle:
            closed, self._closed = self._closed, True
            self._idle.wait_for(lambda: self._running == 0)
        if not closed:
            self._session.close()
