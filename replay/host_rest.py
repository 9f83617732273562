"""TF Serving's REST API on a servable: predict, classify, regress, status and metadata.

The rules and texts are the server's (``model_servers/http_rest_api_handler.cc``, ``http_rest_api_util.cc``,
``util/json_tensor.cc``); bodies are converted by :mod:`capture.convert`, and run as the same requests over gRPC are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from aiohttp import web

from capture.convert.rest import grpc_request
from capture.convert.values import UNIMPLEMENTED, ConversionError, document, signature_name
from capture.dialects.base import Unreadable
from capture.dialects.rest_scan import scan_predict
from capture.dialects.tfserving_rest import MAX_GUNZIPPED_BYTES, Target, TFServingRest, parse_question, parse_target
from replay import rest_answer, tf_protos
from replay.calls import signature_defs
from replay.executor import api
from replay.inference import METHODS, request_class
from replay.predict import RequestError
from replay.servable import Ledger, Servable

#: Requests that run at once; more wait in the pool's queue.
THREADS: Final = 16
MAX_BODY_BYTES: Final = 2**31 - 1

#: model_servers/http_server.cc: ToHTTPStatusCode. Any other code is a 500.
_STATUS: Final = {0: 200, 1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501,
                  14: 503, 16: 401}  # fmt: skip


class RestHost:
    """The HTTP side: everything below ``/v1``. It unpacks bodies itself: aiohttp must hand them over as sent."""

    def __init__(self, servable: Servable, ledger: Ledger) -> None:
        self._servable = servable
        self._ledger = ledger
        self._defs = signature_defs(servable.executor)
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="rest")
        self._verbs: dict[str, Callable[[Target, bytes], bytes]] = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }

    def application(self) -> web.Application:
        """The aiohttp application; the caller runs it."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self._handle)
        return application

    def close(self) -> None:
        """Wait for running requests."""
        self._pool.shutdown()

    async def _handle(self, request: web.Request) -> web.Response:
        path = request.raw_path.partition("?")[0]
        if not path.lower().startswith("/v1/"):
            return web.Response(status=404)
        target = parse_target(path) if request.method == "POST" else None
        if target is None:
            code, answer = self._answered(self._question, request.method, path)
        else:
            coding = request.headers.get("Content-Encoding", "")
            sent = await request.read()
            code, answer = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._call, target, coding, sent
            )
        return web.Response(status=_STATUS.get(code, 500), body=answer, content_type="application/json")

    def _call(self, target: Target, coding: str, sent: bytes) -> tuple[int, bytes]:
        try:
            body = TFServingRest().unpacked(coding, sent, MAX_GUNZIPPED_BYTES)
        except Unreadable:
            # The server then reads nothing, and answers for an empty body (evhttp_request.cc: ReadRequestGzipBytes).
            body = b""
        with self._ledger.request("rest") as opened:
            opened.code, answer = self._answered(self._verbs[target.verb], target, body)
            return opened.code, answer

    @staticmethod
    def _answered(function: Callable[..., bytes], *arguments: Any) -> tuple[int, bytes]:
        try:
            return api.OK, function(*arguments)
        except RequestError as error:
            return error.code, rest_answer.error(error.message)
        except ConversionError as error:
            code = api.UNIMPLEMENTED if error.code == UNIMPLEMENTED else api.INVALID_ARGUMENT
            return code, rest_answer.error(str(error))

    def _resolve(self, target: Target) -> None:
        """ServerCore::GetServableHandle for the one version there is."""
        if target.label:
            # No label is assigned here: that needs a model config file.
            raise RequestError(api.INVALID_ARGUMENT, f"Unrecognized servable version label: {target.label}")
        wanted = f"Specific({target.model}, {target.version})" if target.version else f"Latest({target.model})"
        if target.model != self._servable.name or target.version not in ("", str(self._servable.version)):
            raise RequestError(api.NOT_FOUND, f"Servable not found for request: {wanted}")

    def _run(self, method: str, rest_method: str, target: Target, body: bytes) -> Any:
        try:
            self._resolve(target)
        except RequestError:
            # The server looks the model up for its signatures, once it has read the JSON; for examples behind that.
            if method == "Predict":
                signature_name(document(body))
            else:
                grpc_request(rest_method, body, target.model, {})
            raise
        request = request_class(method).FromString(grpc_request(rest_method, body, target.model, self._defs))
        return METHODS[method][2](self._servable, request)

    def _predict(self, target: Target, body: bytes) -> bytes:
        # Which of the two forms a body has, it tells itself, and a body that ran has one.
        response = self._run("Predict", "REST Predict row", target, body)
        return rest_answer.predictions(response.outputs, row=scan_predict(body).form == "row")

    def _classify(self, target: Target, body: bytes) -> bytes:
        return rest_answer.classifications(self._run("Classify", "REST Classify", target, body).result)

    def _regress(self, target: Target, body: bytes) -> bytes:
        return rest_answer.regressions(self._run("Regress", "REST Regress", target, body).result)

    def _question(self, method: str, path: str) -> bytes:
        target = parse_question(path) if method == "GET" else None
        if target is None:
            raise RequestError(api.INVALID_ARGUMENT, f"Malformed request: {method} {path}")
        if not target.model:
            raise RequestError(api.INVALID_ARGUMENT, "Missing model name in request.")
        return json.dumps(self._metadata(target) if target.verb == "metadata" else self._status(target)).encode()

    def _status(self, target: Target) -> dict[str, Any]:
        if target.label:
            raise RequestError(api.INVALID_ARGUMENT, f"Unrecognized servable version label: {target.label}")
        if target.model != self._servable.name:
            raise RequestError(api.NOT_FOUND, f"Could not find any versions of model {target.model}")
        if target.version not in ("", str(self._servable.version)):
            raise RequestError(api.NOT_FOUND, f"Could not find version {target.version} of model {target.model}")
        status = {"error_code": "OK", "error_message": ""}
        one = {"version": str(self._servable.version), "state": "AVAILABLE", "status": status}
        return {"model_version_status": [one]}

    def _metadata(self, target: Target) -> dict[str, Any]:
        self._resolve(target)
        definitions = tf_protos.load("tensorflow_serving.apis.get_model_metadata_pb2").SignatureDefMap()
        for name, signature in self._servable.executor.signature_defs.items():
            definitions.signature_def[name].ParseFromString(signature.serialized)
        printed = tf_protos.load("google.protobuf.json_format").MessageToDict(
            definitions, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        spec = {"name": self._servable.name, "signature_name": "", "version": str(self._servable.version)}
        return {"model_spec": spec, "metadata": {"signature_def": printed}}
