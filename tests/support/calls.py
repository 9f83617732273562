"""Request and response bodies for tests, written with the project's own minimal messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capture.schema import messages
from capture.schema.wire import length_delimited
from capture.signature import SignatureDef, TensorInfo

#: dtype, shape.
Spec = tuple[int, Sequence[int]]


def predict(
    inputs: Mapping[str, Spec] | Sequence[str] = ("x",),
    *,
    model: str = "m",
    signature: str = "",
    outputs: Sequence[str] = (),
    version: int | None = None,
    label: str = "",
    fill: bytes = b"",
) -> bytes:
    """A TF Serving PredictRequest; ``fill`` is the tensor_content (field 4) of every input."""
    request = messages.PredictRequest()
    _fill_spec(request.model_spec, model, signature, version, label)
    named = inputs if isinstance(inputs, Mapping) else dict.fromkeys(inputs, (1, (1,)))
    for name, (dtype, shape) in named.items():
        tensor = request.inputs[name]
        tensor.dtype = dtype
        dims = messages.TensorShape()
        for size in shape:
            dims.dim.add(size=size)
        tensor.tensor_shape = dims.SerializeToString()
        if fill:
            tensor.MergeFromString(length_delimited(4, fill))
    request.output_filter.extend(outputs)
    return bytes(request.SerializeToString())


def predict_response(version: int | None = 7, model: str = "m", outputs: bytes = b"") -> bytes:
    """A PredictResponse: ``outputs`` as one output (field 1), then model_spec (field 2), as the server orders it."""
    spec = messages.ModelSpec(name=model)
    if version is not None:
        spec.version.value = version
    return (length_delimited(1, outputs) if outputs else b"") + length_delimited(2, spec.SerializeToString())


#: One feature of a tf.Example: its name and its one value.
Feature = tuple[str, float | int | bytes]
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def _fill_input(request: Any, examples: Sequence[Sequence[Feature]], context: Sequence[Feature] | None) -> None:
    shared = request.input.example_list_with_context if context is not None else request.input.example_list
    shared.SetInParent()
    rows = [(shared.examples.add(), features) for features in examples]
    if context is not None:
        rows.append((shared.context, context))
    for example, features in rows:
        example.SetInParent()
        for name, value in features:
            feature = example.features.feature[name]
            kinds = {float: feature.float_list, int: feature.int64_list, bytes: feature.bytes_list}
            kinds[type(value)].value.append(value)


def of_examples(
    examples: Sequence[Sequence[Feature]] = ((("age", 30.0),),),
    *,
    model: str = "m",
    signature: str = "",
    version: int | None = None,
    label: str = "",
    context: Sequence[Feature] | None = None,
) -> bytes:
    """A ClassificationRequest, which is a RegressionRequest too."""
    request = messages.ExamplesRequest()
    _fill_spec(request.model_spec, model, signature, version, label)
    _fill_input(request, examples, context)
    return bytes(request.SerializeToString())


def multi_inference(
    *tasks: tuple[str, str],
    examples: Sequence[Sequence[Feature]] = ((("age", 30.0),),),
    model: str = "m",
    version: int | None = None,
    context: Sequence[Feature] | None = None,
) -> bytes:
    """A MultiInferenceRequest of (method name, signature) each."""
    request = messages.MultiInferenceRequest()
    for method, signature in tasks:
        task = request.tasks.add(method_name=method)
        _fill_spec(task.model_spec, model, signature, version, "")
    _fill_input(request, examples, context)
    return bytes(request.SerializeToString())


def session_run(
    feeds: Sequence[str] = ("x:0",),
    fetches: Sequence[str] = ("y:0",),
    targets: Sequence[str] = (),
    *,
    model: str = "m",
    signature: str = "",
    aliases: bool = False,
) -> bytes:
    """A SessionRunRequest that feeds float vectors."""
    request = messages.SessionRunRequest(fetch=fetches, target=targets, tensor_name_is_alias=aliases)
    _fill_spec(request.model_spec, model, signature, None, "")
    for name in feeds:
        shape = messages.TensorShape()
        shape.dim.add(size=3)
        request.feed.add(name=name).tensor.dtype = 1
        request.feed[-1].tensor.tensor_shape = shape.SerializeToString()
    return bytes(request.SerializeToString())


def _fill_spec(spec: Any, model: str, signature: str, version: int | None, label: str) -> None:
    spec.name = model
    spec.signature_name = signature
    if version is not None:
        spec.version.value = version
    if label:
        spec.version_label = label


def eas(
    inputs: Mapping[str, Sequence[float]] | None = None, *, signature: str = "", outputs: Sequence[str] = ()
) -> bytes:
    """An EAS PredictRequest of float vectors."""
    request = messages.EasPredictRequest(signature_name=signature)
    for name, values in ({"x": [1.0, 2.0]} if inputs is None else inputs).items():
        array = request.inputs[name]
        array.dtype = 1
        array.array_shape.dim.append(len(values))
        array.float_val.extend(values)
    request.output_filter.extend(outputs)
    return bytes(request.SerializeToString())


def signature_def(
    inputs: Mapping[str, str], outputs: Mapping[str, str], method: str = "", defaults: frozenset[str] = frozenset()
) -> SignatureDef:
    """A SignatureDef of which only the tensors' names are known."""
    return SignatureDef(
        {alias: TensorInfo(name) for alias, name in inputs.items()},
        {alias: TensorInfo(name) for alias, name in outputs.items()},
        method,
        defaults,
    )
