"""A model server of several versions that tells no client which one answered, as TF Serving's REST API does not.

gRPC calls go to one of several real model hosts, of which each serves one version; of the answer the model_spec is
taken away. Beside it the three endpoints of TF Serving's REST API that tell of versions, in an aiohttp server, since
the model host has one version only and no such transitions: what they say, and how they fail, a test decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any, Literal

import grpc
from aiohttp import web
from google.protobuf import json_format

from replay import tf_protos
from tests.support.waiting import PATIENCE, until

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"

Fault = Literal["", "slow", "garbage", "huge", "no such model", "another version"]


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, server: VersionServer) -> None:
        self._server = server

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._server.predict) if details.method == _PREDICT else None


class VersionServer:
    """``hosts`` maps versions to the ``host:port`` of their model host. ``states`` is what the status says, ``serving``
    the version that answers calls that ask for none; ``labels`` are assigned to versions."""

    def __init__(self, model: str, hosts: Mapping[str, str]) -> None:
        self.model = model
        self.states: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.serving = ""
        self.fault: Fault = ""
        #: (version, sorted outputs asked for): how often it answered.
        self.served: Counter[tuple[str, tuple[str, ...]]] = Counter()
        #: Answers that told the present state.
        self.told = 0
        self._lock = threading.Lock()
        self._end = asyncio.Event()
        self._channels = {version: grpc.insecure_channel(target) for version, target in hosts.items()}
        self._types = tf_protos.load("tensorflow_serving.apis.predict_pb2")
        self._metadata = tf_protos.load("tensorflow_serving.apis.get_model_metadata_pb2")
        self.grpc = self.status = ""

    def become(self, serving: str, states: dict[str, str]) -> None:
        """Serve this version from now on, and say so."""
        with self._lock:
            self.serving, self.states, self.told = serving, states, 0

    def wait_told(self) -> None:
        """Until the state of now was told twice."""
        until(lambda: self.told >= 2, "two polls of the state")

    def predict(self, body: bytes, _: Any) -> bytes:
        """One call, over gRPC."""
        request = self._types.PredictRequest.FromString(body)
        label = request.model_spec.version_label
        with self._lock:
            version = self.labels[label] if label else self.serving
            self.served[version, tuple(sorted(request.output_filter))] += 1
        request.model_spec.ClearField("version_choice")
        call = self._channels[version].unary_unary(_PREDICT)
        response = self._types.PredictResponse.FromString(call(request.SerializeToString(), timeout=PATIENCE))
        response.ClearField("model_spec")
        answer: bytes = response.SerializeToString()
        return answer

    async def _status(self, request: web.Request) -> web.StreamResponse:
        if (failed := await self._fail(request)) is not None:
            return failed
        with self._lock:
            found = [{"version": version, "state": state} for version, state in self.states.items()]
            self.told += 1
        return web.json_response({"model_version_status": found})

    async def _metadata_of(self, request: web.Request) -> web.StreamResponse:
        if self.fault != "another version" and (failed := await self._fail(request)) is not None:
            return failed
        version = request.match_info.get("version") or self.labels.get(request.match_info.get("label", ""), "")
        if not version:
            return web.json_response({"error": "Unrecognized servable version label"}, status=400)
        if self.fault == "another version":
            version = next(other for other in self._channels if other != version)
        asked = self._metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        asked.model_spec.name = self.model
        call = self._channels[version].unary_unary(_METADATA)
        answer = await asyncio.to_thread(call, asked.SerializeToString(), timeout=PATIENCE)
        found = self._metadata.GetModelMetadataResponse.FromString(answer)
        signatures = self._metadata.SignatureDefMap.FromString(found.metadata["signature_def"].value)
        told = json_format.MessageToDict(signatures, preserving_proto_field_name=True)
        spec = {"name": self.model, "signature_name": "", "version": version}
        return web.json_response({"model_spec": spec, "metadata": {"signature_def": told}})

    async def _fail(self, request: web.Request) -> web.StreamResponse | None:
        if request.match_info["model"] != self.model or self.fault == "no such model":
            return web.json_response({"error": "Could not find any versions of model"}, status=404)
        if self.fault == "slow":
            await self._end.wait()
        if self.fault == "garbage":
            return web.Response(body=b'{"model_version_status": [{"version": "1", "state": ')
        if self.fault == "huge":
            response = web.StreamResponse()
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                while True:
                    await response.write(b" " * 65536)
        return None

    @contextlib.contextmanager
    def run(self) -> Iterator[VersionServer]:
        """Serve; ``grpc`` is ``host:port``, ``status`` a URL."""
        server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[_Handler(self)])
        self.grpc = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        loop = asyncio.new_event_loop()
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=5)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.status = f"http://127.0.0.1:{runner.addresses[0][1]}"
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            server.stop(None).wait()
            loop.call_soon_threadsafe(self._end.set)
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(PATIENCE)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            for channel in self._channels.values():
                channel.close()

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/v1/models/{model}", self._status)
        application.router.add_get("/v1/models/{model}/versions/{version}/metadata", self._metadata_of)
        application.router.add_get("/v1/models/{model}/labels/{label}/metadata", self._metadata_of)
        return application
