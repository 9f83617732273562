"""TF Serving's gRPC on a servable: all of PredictionService, and ModelService.GetModelStatus.

The rules and texts are the server's (``servables/tensorflow/predict_impl.cc``, ``classification_service.cc``,
``regression_service.cc``, ``multi_inference_helper.cc``, ``get_model_metadata_impl.cc``,
``model_servers/get_model_status_impl.cc``, ``server_core.cc``); messages and service tables are the real
tensorflow-serving-api. Other methods of these services answer UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc

from replay import tf_protos
from replay.executor import api
from replay.inference import METHODS, request_class
from replay.predict import RequestError
from replay.servable import Ledger, Servable

#: The server's own limit for a message in either direction (model_servers/server.cc).
MAX_MESSAGE_BYTES = 2**31 - 1
#: Requests that run at once; more wait in the pool's queue.
THREADS = 16

_NO_SPEC = SimpleNamespace(name="")
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class GrpcHost:
    """A gRPC server for one servable. ``start`` binds and returns ``host:port``."""

    def __init__(self, servable: Servable, ledger: Ledger) -> None:
        self._servable = servable
        self._ledger = ledger
        self._metadata = tf_protos.load("tensorflow_serving.apis.get_model_metadata_pb2")
        self._status = tf_protos.load("tensorflow_serving.apis.get_model_status_pb2")
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # A second server on the same port is a mistake, not a way to share load.
                ("grpc.so_reuseport", 0),
            ],
        )
        methods: dict[str, dict[str, tuple[Callable[[Any], Any], Any]]] = {
            "tensorflow.serving.PredictionService": {
                **{method: (partial(self._infer, method), request_class(method)) for method in METHODS},
                "GetModelMetadata": (self._get_model_metadata, self._metadata.GetModelMetadataRequest),
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": (self._get_model_status, self._status.GetModelStatusRequest),
            },
        }
        for service, table in methods.items():
            handlers = {
                name: grpc.unary_unary_rpc_method_handler(
                    self._handler(name, function),
                    request_deserializer=request.FromString,
                    response_serializer=_serialize,
                )
                for name, (function, request) in table.items()
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def start(self, address: str) -> str:
        """Bind ``host:port`` (port 0: any) and serve. Raises OSError if the address cannot be had."""
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(str(error).partition(";")[0]) from None
        self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    def stop(self, grace: float) -> None:
        """Refuse new requests, give running ones ``grace`` seconds."""
        self._server.stop(grace).wait()

    def _handler(self, name: str, function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        counted = name in METHODS

        def handle(request: Any, context: Any) -> Any:
            if not counted:
                try:
                    return function(request)
                except RequestError as error:
                    _abort(context, error)
            with self._ledger.request("grpc") as opened:
                try:
                    response = function(request)
                    opened.code = api.OK
                    return response
                except RequestError as error:
                    opened.code = error.code
                    _abort(context, error)

        return handle

    def _resolve(self, request: Any) -> None:
        """ServerCore::GetServableHandle for the one version there is."""
        if not request.HasField("model_spec"):
            raise RequestError(api.INVALID_ARGUMENT, "Missing ModelSpec")
        self._find(request.model_spec)

    def _find(self, spec: Any) -> None:
        if not spec.name:
            raise RequestError(api.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            # No label is assigned here: that needs a model config file.
            raise RequestError(api.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}")
        wanted = f"Latest({spec.name})" if choice is None else f"Specific({spec.name}, {spec.version.value})"
        if spec.name != self._servable.name or (choice == "version" and spec.version.value != self._servable.version):
            raise RequestError(api.NOT_FOUND, f"Servable not found for request: {wanted}")

    def _infer(self, method: str, request: Any) -> Any:
        if method == "MultiInference":
            # Looked up by the first task; without one, by an empty ModelSpec.
            self._find(request.tasks[0].model_spec if request.tasks else _NO_SPEC)
        else:
            self._resolve(request)
        return METHODS[method][2](self._servable, request)

    def _get_model_metadata(self, request: Any) -> Any:
        if not request.HasField("model_spec"):
            raise RequestError(api.INVALID_ARGUMENT, "Missing ModelSpec")
        if not request.metadata_field:
            raise RequestError(api.INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                # The server passes a format string to a function that only concatenates.
                raise RequestError(api.INVALID_ARGUMENT, f"Metadata field %s is not supported{field}")
        self._resolve(request)
        signatures = self._metadata.SignatureDefMap()
        for name, signature in self._servable.executor.signature_defs.items():
            signatures.signature_def[name].ParseFromString(signature.serialized)
        response = self._metadata.GetModelMetadataResponse()
        response.model_spec.name = self._servable.name
        response.model_spec.version.value = self._servable.version
        response.metadata["signature_def"].Pack(signatures)
        return response

    def _get_model_status(self, request: Any) -> Any:
        if not request.HasField("model_spec"):
            raise RequestError(api.INVALID_ARGUMENT, "Missing ModelSpec")
        spec = request.model_spec
        asked = spec.version.value if spec.HasField("version") else None
        if asked is not None and (spec.name, asked) != (self._servable.name, self._servable.version):
            raise RequestError(api.NOT_FOUND, f"Could not find version {asked} of model {spec.name}")
        if spec.name != self._servable.name:
            raise RequestError(api.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        response = self._status.GetModelStatusResponse()
        response.model_version_status.add(
            version=self._servable.version, state=self._status.ModelVersionStatus.AVAILABLE
        )
        return response


def _serialize(message: Any) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized


def _abort(context: Any, error: RequestError) -> NoReturn:
    # grpc.StatusCode.OK cannot be aborted with; a RequestError never carries it.
    context.abort(_STATUS.get(error.code, grpc.StatusCode.UNKNOWN), error.message)
    raise AssertionError("abort returned")
