"""Request and response bodies for tests, written with the project's own minimal messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capture.schema import messages
from capture.schema.wire import length_delimited

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
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
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
