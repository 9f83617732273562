"""What the requests of TensorFlow Serving mean, method by method: bytes in, a Call out. Transport and outcome are not
looked at, so gRPC, REST (converted) and the records of a warm-up file are read by the same rules.

Messages: tensorflow_serving/apis/{predict,classification,regression,inference,input,session_service}.proto. Neither
tensor contents nor tf.Examples are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from capture.dialects.base import MAX_DIMENSIONS, Unreadable
from capture.schema import messages
from capture.schema.wire import LENGTH, WireError, count_fields, crowded, fields
from capture.signature import DEFAULT_SIGNATURE, Call, TensorSpec, WireSignature, wire_signature

FAMILY: Final = "tfserving"
#: The one input of Classify, Regress and MultiInference (tensorflow/cc/saved_model/signature_constants.h:
#: kClassifyInputs, kRegressInputs).
EXAMPLES_INPUT: Final = "inputs"
#: What a task of MultiInference may ask for (same file), and how its wire signature writes that: KIND:SIGNATURE.
TASK_KINDS: Final = {"tensorflow/serving/classify": "classify", "tensorflow/serving/regress": "regress"}

#: Shapes of real requests are some ten bytes; a longer one is not remembered.
MAX_KNOWN_SHAPE_BYTES: Final = 128
#: A longer one is not parsed: each dimension of two bytes would take forty.
MAX_SHAPE_BYTES: Final = 64 << 10
#: tf.Examples of one request that are counted: some 20 ms. Real batches have hundreds.
MAX_EXAMPLES: Final = 1 << 16
#: Fields of an Input message; one is usual.
MAX_INPUT_FIELDS: Final = 1000

_INPUT: Final = 2
_DT_STRING: Final = 7
_EXAMPLE_LIST, _EXAMPLE_LIST_WITH_CONTEXT = 1, 2


class Spec(NamedTuple):
    """What a request's model_spec says; empty where it says nothing."""

    model: str
    signature_name: str
    version: str
    label: str


def read_predict(body: bytes) -> Call:
    """A PredictRequest. Here as below the model may lack its name, which a warm-up does not need. Raises Unreadable."""
    request = _parse(messages.PredictRequest, "PredictRequest", body)
    spec = _spec(request.model_spec)
    tensors = sorted((_tensor(alias, tensor) for alias, tensor in request.inputs.items()), key=_by_name)
    signature = wire_signature(
        FAMILY, spec.model, "Predict", spec.signature_name, request.inputs, request.output_filter
    )
    return _call(signature, tensors, spec)


def read_classify(body: bytes) -> Call:
    """A ClassificationRequest. Raises Unreadable."""
    return _read_examples("Classify", "ClassificationRequest", body)


def read_regress(body: bytes) -> Call:
    """A RegressionRequest. Raises Unreadable."""
    return _read_examples("Regress", "RegressionRequest", body)


def _read_examples(method: str, name: str, body: bytes) -> Call:
    spec = _spec(_parse(messages.ExamplesRequestHead, name, body).model_spec)
    signature = wire_signature(FAMILY, spec.model, method, spec.signature_name, (EXAMPLES_INPUT,), ())
    return _call(signature, _examples(body), spec)


def read_multi_inference(body: bytes) -> Call:
    """A MultiInferenceRequest. Its signature's outputs are the tasks, each as KIND:SIGNATURE; a signature name of its
    own it has none. Version and label are the first task's, by which the server looks up the model
    (multi_inference_helper.cc). Raises Unreadable, also where the server would refuse the tasks unseen."""
    request = _parse(messages.MultiInferenceRequestHead, "MultiInferenceRequest", body)
    if not request.tasks:
        raise Unreadable("no tasks")
    first = _spec(request.tasks[0].model_spec)
    tasks = []
    for task in request.tasks:
        if task.method_name not in TASK_KINDS:
            raise Unreadable("a task that is neither classify nor regress")
        if task.model_spec.name != first.model:
            raise Unreadable("tasks of several models")
        tasks.append(multi_inference_task(task.method_name, task.model_spec.signature_name))
    signature = wire_signature(FAMILY, first.model, "MultiInference", "", (EXAMPLES_INPUT,), tasks)
    return _call(signature, _examples(body), first)


def multi_inference_task(method_name: str, signature_name: str) -> str:
    """How a wire signature writes a task. The kind holds no colon, so no two tasks are written alike."""
    # An empty name means the default signature, as everywhere.
    return f"{TASK_KINDS[method_name]}:{signature_name or DEFAULT_SIGNATURE}"


def read_session_run(body: bytes) -> Call:
    """A SessionRunRequest: textual tensor names instead of a signature. In its signature a target stands as ``^name``
    among the outputs, and names that are aliases (``tensor_name_is_alias``) begin with ``@``. Its RunOptions are left
    out: the server ignores them (session_service.proto). Raises Unreadable."""
    request = _parse(messages.SessionRunRequest, "SessionRunRequest", body)
    if not request.fetch and not request.target:
        raise Unreadable("nothing to fetch or run")
    prefix = "@" if request.tensor_name_is_alias else ""
    feeds = [prefix + feed.name for feed in request.feed]
    fetches = [prefix + name for name in request.fetch]
    if not prefix and any(name.startswith(("@", "^")) for name in (*feeds, *fetches, *request.target)):
        # No name of TensorFlow's, and it would read like another request.
        raise Unreadable("malformed tensor name")
    spec = _spec(request.model_spec)
    tensors = sorted((_tensor(prefix + feed.name, feed.tensor) for feed in request.feed), key=_by_name)
    outputs = [*fetches, *(f"^{prefix}{name}" for name in request.target)]
    return _call(wire_signature(FAMILY, spec.model, "SessionRun", spec.signature_name, feeds, outputs), tensors, spec)


#: Method -> how its request is read.
READERS: Final[dict[str, Callable[[bytes], Call]]] = {
    "Predict": read_predict,
    "Classify": read_classify,
    "Regress": read_regress,
    "MultiInference": read_multi_inference,
    "SessionRun": read_session_run,
}


def count_examples(request: bytes) -> int:
    """The tf.Examples in the ``input`` of a request, by protobuf's rules: of example_list and
    example_list_with_context the later one counts, and parts of one are put together. Raises Unreadable."""
    kind = count = 0
    try:
        for field in fields(request):
            if field.number != _INPUT or field.wire_type != LENGTH:
                continue
            for place, listed in enumerate(fields(request, field.value, field.end)):
                if place == MAX_INPUT_FIELDS:
                    raise Unreadable("too many fields")
                if listed.wire_type != LENGTH or listed.number not in (_EXAMPLE_LIST, _EXAMPLE_LIST_WITH_CONTEXT):
                    continue
                if listed.number != kind:
                    kind, count = listed.number, 0
                count += count_fields(request, listed.value, listed.end, 1, MAX_EXAMPLES + 1 - count)
                if count > MAX_EXAMPLES:
                    raise Unreadable("too many examples")
    except WireError:
        raise Unreadable("malformed examples") from None
    return count


def _examples(body: bytes) -> list[TensorSpec]:
    """The fed tensor: a vector of serialized Examples (util.cc: InputToSerializedExampleTensor)."""
    return [TensorSpec(EXAMPLES_INPUT, _DT_STRING, (count_examples(body),))]


def _parse(message: Any, name: str, body: bytes) -> Any:
    if crowded(body):
        raise Unreadable("too many fields")
    try:
        return message.FromString(body)
    except DecodeError:
        raise Unreadable(f"not a {name}") from None


def _spec(spec: Any) -> Spec:
    choice = spec.WhichOneof("version_choice")
    version = str(spec.version.value) if choice == "version" else ""
    return Spec(spec.name, spec.signature_name, version, spec.version_label if choice == "version_label" else "")


def _call(signature: WireSignature, tensors: Iterable[TensorSpec], spec: Spec) -> Call:
    return Call(signature, tuple(tensors), version=spec.version, version_label=spec.label)


def _tensor(name: str, tensor: Any) -> TensorSpec:
    return TensorSpec(name, tensor.dtype, _shape(tensor.tensor_shape))


def _shape(serialized: bytes) -> tuple[int, ...] | None:
    """The dimensions of a TensorShapeProto; None where the rank is not given. Raises Unreadable."""
    return _known_shape(serialized) if len(serialized) <= MAX_KNOWN_SHAPE_BYTES else _parse_shape(serialized)


def _parse_shape(serialized: bytes) -> tuple[int, ...] | None:
    if len(serialized) > MAX_SHAPE_BYTES:
        raise Unreadable("too many dimensions")
    try:
        shape = messages.TensorShape.FromString(serialized)
    except DecodeError:
        raise Unreadable("malformed tensor shape") from None
    if len(shape.dim) > MAX_DIMENSIONS:
        raise Unreadable("too many dimensions")
    return None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)


_known_shape = lru_cache(maxsize=4096)(_parse_shape)


def _by_name(tensor: TensorSpec) -> str:
    return tensor.name
