"""Classify, Regress and MultiInference records of a warm-up file: from tf.Examples to one Session::Run.

By ``servables/tensorflow/classifier.cc``, ``regressor.cc``, ``multi_inference.cc`` and ``util.cc``
(InputToSerializedExampleTensor). The server also checks the shapes of what comes back; that cannot change what was
built and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capture.signature import DEFAULT_SIGNATURE
from replay import tf_protos
from replay.executor import api
from replay.executor.api import Signature
from replay.predict import Plan, RequestError
from replay.servable import Servable

_CLASSIFY, _REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_DT_STRING = 7


def classify(servable: Servable, request: Any) -> None:
    """Run a ClassificationRequest. Raises RequestError."""
    name, fetches = _classification(_signature(servable, request.model_spec))
    _run(servable, request.input, [name], fetches)


def regress(servable: Servable, request: Any) -> None:
    """Run a RegressionRequest. Raises RequestError."""
    name, fetches = _regression(_signature(servable, request.model_spec))
    _run(servable, request.input, [name], fetches)


def multi_inference(servable: Servable, request: Any) -> None:
    """Run all tasks of a MultiInferenceRequest at once, as the server does. Raises RequestError."""
    model, signatures = "", set[str]()
    feeds, fetches = set[str](), set[str]()
    for task in request.tasks:
        if not task.model_spec.name:
            raise RequestError(api.INVALID_ARGUMENT, "Found ModelSpec with an empty model name.")
        model = model or task.model_spec.name
        if task.model_spec.name != model:
            raise RequestError(
                api.INVALID_ARGUMENT, "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in signatures:
            raise RequestError(api.INVALID_ARGUMENT, f"Duplicate evaluation of signature: {name}")
        signatures.add(name)
        if task.method_name not in (_CLASSIFY, _REGRESS):
            raise RequestError(api.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        read = _classification if task.method_name == _CLASSIFY else _regression
        feed, outputs = read(_signature(servable, task.model_spec))
        feeds.add(feed)
        fetches.update(outputs)
    _run(servable, request.input, sorted(feeds), sorted(fetches))


def _signature(servable: Servable, model_spec: Any) -> Signature:
    name = model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.executor.signature_defs.get(name)
    if signature is None:
        raise RequestError(api.INVALID_ARGUMENT, f"No signature was found with the name: {name}")
    return signature


def _classification(signature: Signature) -> tuple[str, list[str]]:
    """The fed tensor name, and ``classes`` before ``scores``, whichever exist."""
    if len(signature.inputs) != 1:
        raise RequestError(api.INVALID_ARGUMENT, "Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise RequestError(api.INVALID_ARGUMENT, f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise RequestError(api.FAILED_PRECONDITION, "No classification inputs found in SignatureDef")
    fetches = [signature.outputs[alias].name for alias in ("classes", "scores") if alias in signature.outputs]
    if not fetches:
        raise RequestError(
            api.FAILED_PRECONDITION,
            'Expected classification signature outputs to contain at least one of "classes" or "scores".',
        )
    return signature.inputs["inputs"].name, fetches


def _regression(signature: Signature) -> tuple[str, list[str]]:
    if len(signature.inputs) != 1:
        raise RequestError(api.INVALID_ARGUMENT, "Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise RequestError(api.INVALID_ARGUMENT, "Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise RequestError(api.FAILED_PRECONDITION, "No regression inputs found in SignatureDef")
    if "outputs" not in signature.outputs:
        raise RequestError(api.FAILED_PRECONDITION, "No regression outputs found in SignatureDef")
    return signature.inputs["inputs"].name, [signature.outputs["outputs"].name]


def _run(servable: Servable, examples: Any, feeds: Sequence[str], fetches: Sequence[str]) -> None:
    tensor = _example_tensor(examples)
    servable.run(Plan([(name, tensor) for name in feeds], fetches, feeds, fetches), values=False)


def _example_tensor(examples: Any) -> bytes:
    """A DT_STRING tensor [n] of serialized Examples; a shared context goes in front of each, which merges it."""
    kind = examples.WhichOneof("kind")
    listed = getattr(examples, kind).examples if kind else []
    if not listed:
        raise RequestError(api.INVALID_ARGUMENT, "Input is empty.")
    context = b""
    if kind == "example_list_with_context":
        context = examples.example_list_with_context.context.SerializeToString()
    tensor = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto(dtype=_DT_STRING)
    tensor.tensor_shape.dim.add(size=len(listed))
    tensor.string_val.extend(context + example.SerializeToString() for example in listed)
    serialized: bytes = tensor.SerializeToString()
    return serialized
