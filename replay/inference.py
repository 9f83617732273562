"""The methods that take tf.Examples, Classify, Regress and MultiInference, and SessionRun: from a request to one
Session::Run and to the response.

By ``servables/tensorflow/classifier.cc``, ``regressor.cc``, ``multi_inference.cc`` and ``util.cc``
(InputToSerializedExampleTensor), with the server's texts. Warm-up (``live=False``) runs the same code, the checks of
what comes back included, and its response is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capture.signature import DEFAULT_SIGNATURE
from replay import tf_protos
from replay.executor import api
from replay.executor.api import Signature
from replay.predict import Plan, RequestError
from replay.servable import Servable

_CLASSIFY, _REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_DT_FLOAT, _DT_STRING = 1, 7
_TYPES = {_DT_FLOAT: "DT_FLOAT", _DT_STRING: "DT_STRING"}


def classify(servable: Servable, request: Any, *, live: bool = True) -> Any:
    """RunClassify: a ClassificationRequest to a ClassificationResponse. Raises RequestError."""
    signature = _signature(servable, request.model_spec, "No signature was found with the name: ")
    feed, fetches = _classification(signature)
    response = tf_protos.load("tensorflow_serving.apis.classification_pb2").ClassificationResponse()
    _name(servable, request.model_spec, response.model_spec, live=live)
    count, outputs = _run(servable, request.input, [feed], fetches)
    _classified(signature, count, outputs, response.result)
    return response


def regress(servable: Servable, request: Any, *, live: bool = True) -> Any:
    """RunRegress: a RegressionRequest to a RegressionResponse. Raises RequestError."""
    signature = _signature(servable, request.model_spec, "No signature was found with the name: ")
    feed, fetches = _regression(signature)
    response = tf_protos.load("tensorflow_serving.apis.regression_pb2").RegressionResponse()
    _name(servable, request.model_spec, response.model_spec, live=live)
    count, outputs = _run(servable, request.input, [feed], fetches)
    _regressed(signature, count, outputs, response.result)
    return response


def multi_inference(servable: Servable, request: Any, *, live: bool = True) -> Any:
    """RunMultiInference: all tasks in one Session::Run. Raises RequestError."""
    model, signatures = "", dict[str, Signature]()
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
        signature = _signature(servable, task.model_spec, "Requested signature not found in model graph: ")
        signatures[name] = signature
        if task.method_name not in (_CLASSIFY, _REGRESS):
            raise RequestError(api.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        feed, outputs = (_classification if task.method_name == _CLASSIFY else _regression)(signature)
        feeds.add(feed)
        fetches.update(outputs)
    count, found = _run(servable, request.input, sorted(feeds), sorted(fetches))
    response = tf_protos.load("tensorflow_serving.apis.inference_pb2").MultiInferenceResponse()
    for task in request.tasks:
        signature = signatures[task.model_spec.signature_name or DEFAULT_SIGNATURE]
        result = response.results.add()
        if task.method_name == _CLASSIFY:
            _classified(signature, count, found, result.classification_result)
        else:
            _regressed(signature, count, found, result.regression_result)
        _name(servable, task.model_spec, result.model_spec, live=live)
    return response


def session_run(servable: Servable, request: Any) -> None:
    """Run a SessionRunRequest for what it builds: its names go to Session::Run as they are. Raises RequestError, also
    for targets, which the executor cannot run."""
    if request.target:
        raise RequestError(api.UNIMPLEMENTED, "SessionRun with targets cannot be run here")
    if request.tensor_name_is_alias:
        raise RequestError(api.UNIMPLEMENTED, "SessionRun with aliases cannot be run here")
    names = [feed.name for feed in request.feed]
    feeds = [(feed.name, feed.tensor.SerializeToString()) for feed in request.feed]
    servable.run(Plan(feeds, list(request.fetch), names, list(request.fetch)), values=False)


def _signature(servable: Servable, model_spec: Any, unknown: str) -> Signature:
    name = model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.executor.signature_defs.get(name)
    if signature is None:
        raise RequestError(api.INVALID_ARGUMENT, unknown + name)
    return signature


def _name(servable: Servable, asked: Any, answered: Any, *, live: bool) -> None:
    """MakeModelSpec."""
    answered.name = asked.name
    answered.signature_name = asked.signature_name or DEFAULT_SIGNATURE
    if live:
        answered.version.value = servable.version


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


def _run(
    servable: Servable, examples: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> tuple[int, Mapping[str, Any]]:
    """The number of examples, and by name the fetched tensors as TensorProto."""
    count, tensor = _example_tensor(examples)
    outputs = servable.run(Plan([(name, tensor) for name in feeds], fetches, feeds, fetches))
    proto = tf_protos.load("tensorflow.core.framework.tensor_pb2").TensorProto
    return count, {name: proto.FromString(output) for name, output in zip(fetches, outputs, strict=True)}


def _example_tensor(examples: Any) -> tuple[int, bytes]:
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
    return len(listed), serialized


def _classified(signature: Signature, count: int, outputs: Mapping[str, Any], result: Any) -> None:
    """PostProcessClassificationResult."""
    found = {}
    for alias, dtype in (("classes", _DT_STRING), ("scores", _DT_FLOAT)):
        if alias not in signature.outputs:
            continue
        tensor = outputs[signature.outputs[alias].name]
        shape = _shape(tensor)
        if len(shape) != 2:
            raise RequestError(
                api.INVALID_ARGUMENT, f"Expected Tensor shape: [batch_size num_classes] but got {_written(shape)}"
            )
        _check_type(f"{alias} ", tensor, dtype)
        if shape[0] != count:
            raise RequestError(api.INVALID_ARGUMENT, f"Expected {alias} output batch size of {count}. Got: {shape[0]}")
        found[alias] = (shape[1], tensor)
    widths = [width for width, _ in found.values()]
    if len(set(widths)) > 1:
        raise RequestError(
            api.INVALID_ARGUMENT,
            f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}",
        )
    for row in range(count):
        classifications = result.classifications.add()
        for column in range(widths[0]):
            one = classifications.classes.add()
            place = row * widths[0] + column
            if "classes" in found:
                one.label = found["classes"][1].string_val[place]
            if "scores" in found:
                one.score = found["scores"][1].float_val[place]


def _regressed(signature: Signature, count: int, outputs: Mapping[str, Any], result: Any) -> None:
    """PostProcessRegressionResult."""
    tensor = outputs[signature.outputs["outputs"].name]
    shape = _shape(tensor)
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise RequestError(
            api.INVALID_ARGUMENT,
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got " + _written(shape),
        )
    if shape[0] != count:
        raise RequestError(
            api.INVALID_ARGUMENT, f"Input batch size did not match output batch size: {count} vs. {shape[0]}"
        )
    _check_type("output ", tensor, _DT_FLOAT)
    for value in tensor.float_val:
        result.regressions.add(value=value)


def _check_type(what: str, tensor: Any, dtype: int) -> None:
    if tensor.dtype != dtype:
        got = tf_protos.load("tensorflow.core.framework.types_pb2").DataType.Name(tensor.dtype)
        raise RequestError(api.INVALID_ARGUMENT, f"Expected {what}Tensor of {_TYPES[dtype]}. Got: {got}")


def _shape(tensor: Any) -> list[int]:
    return [dim.size for dim in tensor.tensor_shape.dim]


def _written(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _predict(servable: Servable, request: Any, *, live: bool = True) -> Any:
    return servable.predict(request, live=live)


#: Method -> the module and the message of its request, and what runs it: those that a server answers and warms up.
METHODS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "Predict": ("predict_pb2", "PredictRequest", _predict),
    "Classify": ("classification_pb2", "ClassificationRequest", classify),
    "Regress": ("regression_pb2", "RegressionRequest", regress),
    "MultiInference": ("inference_pb2", "MultiInferenceRequest", multi_inference),
}


def request_class(method: str) -> Any:
    """The real message class of a method's request, SessionRun's too. Raises KeyError for any other."""
    if method == "SessionRun":
        return tf_protos.load("tensorflow_serving.apis.session_service_pb2").SessionRunRequest
    module, name, _ = METHODS[method]
    return getattr(tf_protos.load(f"tensorflow_serving.apis.{module}"), name)
