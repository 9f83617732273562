"""Real clients of a fleet: each calls one sidecar again and again, and goes on at another one when that is killed."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import grpc
import requests

from replay import tf_protos
from tests.clients import commands
from tests.demo.traffic import EXPLAIN_INPUTS, RANK_INPUTS
from tests.models.ranking import DENSE
from tests.support.processes import ROOT
from tests.support.tf_requests import predict_request, ranking_inputs
from tests.support.waiting import PATIENCE, until

#: Seconds between two calls of a client in this process: others need the CPU too.
PAUSE: Final = 0.03


@dataclass(slots=True, eq=False)
class Place:
    """A sidecar as clients know it. ``killed``: calls to it may break, and are then made elsewhere."""

    name: str
    grpc: str
    rest: str
    eas: str
    killed: bool = False


class Kind(NamedTuple):
    """What a call asks for; ``line`` is its wire signature as users read it."""

    line: str
    signature: str
    inputs: list[str]
    outputs: tuple[str, ...]


def kind(prefix: str, signature: str, *outputs: str) -> Kind:
    """A call of the ranking model."""
    inputs = EXPLAIN_INPUTS if signature == "explain" else RANK_INPUTS
    names = ", ".join(sorted(outputs)) or "*"
    return Kind(f"{prefix}/{signature} ({', '.join(sorted(inputs))}) -> ({names})", signature, inputs, outputs)


GRPC: Final = [
    kind("Predict ranking", "serving_default", "score"),
    kind("Predict ranking", "serving_default", "top_ids", "score"),
    kind("Predict ranking", "explain", "attribution"),
]
REST: Final = [kind("REST Predict column ranking", "serving_default"), kind("REST Predict column ranking", "explain")]
EAS: Final = [
    kind("predict rank", "serving_default", "score"),
    kind("predict rank", "serving_default", "embedding"),
    kind("predict rank", "explain", "attribution"),
]


class Client(Protocol):
    """A real client."""

    def call(self, place: Place, kind: Kind) -> bool:
        """Make a call and check its answer; False where it broke off, and nobody knows whether the model ran."""

    def close(self) -> None:
        """Close its connections."""


class Caller:
    """One client that calls again and again. ``answered`` counts calls by (place, line), ``broken`` those that may have
    run, by place: those are made again elsewhere."""

    def __init__(self, place: Place, kinds: Sequence[Kind], client: Client) -> None:
        self.place = place
        self.kinds = list(kinds)
        self.answered: Counter[tuple[str, str]] = Counter()
        self.broken: Counter[str] = Counter()
        self.failures: list[str] = []
        self._calls = 0
        #: Where it goes when its place is killed.
        self.elsewhere = place
        self._client = client
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        turn = 0
        try:
            while not self._ended.wait(PAUSE):
                kind = self.kinds[turn % len(self.kinds)]
                while not self._answered(self.place, kind):
                    pass
                turn += 1
        except Exception as error:
            self.failures.append(repr(error))

    def _answered(self, place: Place, kind: Kind) -> bool:
        if self._client.call(place, kind):
            self.answered[place.name, kind.line] += 1
            self._calls += 1
            return True
        assert place.killed, f"a call of {kind.line} through {place.name} failed"
        self.broken[place.name] += 1
        if self.place is place:
            self.place = self.elsewhere
        return False

    def more(self, calls: int) -> None:
        """Wait until so many more were answered."""
        goal = self._calls + calls
        until(lambda: self._calls >= goal or self.failures, f"answers at {self.place.name}")
        assert not self.failures, self.failures

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()


class Grpcio:
    """grpcio, with a channel that is kept."""

    def __init__(self) -> None:
        self._place: Place | None = None
        self._channel: Any = None
        self._stub: Any = None
        self._given = ranking_inputs()

    def call(self, place: Place, kind: Kind) -> bool:
        if place is not self._place:
            self.close()
            self._place, self._channel = place, grpc.insecure_channel(place.grpc)
            service = tf_protos.load("tensorflow_serving.apis.prediction_service_pb2_grpc")
            self._stub = service.PredictionServiceStub(self._channel)
        inputs = {name: self._given[name] for name in kind.inputs}
        request = predict_request(inputs, signature=kind.signature, outputs=kind.outputs)
        try:
            answer = self._stub.Predict(request, timeout=PATIENCE)
        except grpc.RpcError:
            return False
        assert sorted(answer.outputs) == sorted(kind.outputs)
        return True

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


class Requests:
    """requests, with a connection that is kept."""

    def __init__(self) -> None:
        self._session = requests.Session()
        self._given: dict[str, list[Any]] = {
            "user_id": ["user-1"], "category": ["category-1"], "dense": [[0.5] * DENSE], "item_ids": [[1, 2, 3]]
        }  # fmt: skip

    def call(self, place: Place, kind: Kind) -> bool:
        body = {"signature_name": kind.signature, "inputs": {name: self._given[name] for name in kind.inputs}}
        url = f"http://{place.rest}/v1/models/ranking:predict"
        try:
            answer = self._session.post(url, json=body, timeout=PATIENCE)
        except requests.ConnectionError:
            return False
        assert answer.status_code == 200, answer.text
        assert "score" in answer.json()["outputs"]
        return True

    def close(self) -> None:
        self._session.close()


class EasSdk:
    """The EAS SDK, which needs an environment and so a process of its own."""

    def __init__(self) -> None:
        self._place: Place | None = None
        self._process: subprocess.Popen[str] | None = None
        self._seed = 0

    def call(self, place: Place, kind: Kind) -> bool:
        if place is not self._place:
            self.close()
            self._place = place
            words = commands.eas_client(f"http://{place.eas}", "rank", "--lines")
            self._process = subprocess.Popen(words, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._seed += 1
        plan = {"signature": kind.signature, "inputs": kind.inputs, "outputs": kind.outputs, "batch": 2, "items": 5}
        self._process.stdin.write(json.dumps([plan | {"seed": self._seed}]) + "\n")
        self._process.stdin.flush()
        return bool(json.loads(self._process.stdout.readline())["ok"])

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def callers(place: Place) -> list[Caller]:
    """One of each kind."""
    return [Caller(place, GRPC, Grpcio()), Caller(place, REST, Requests()), Caller(place, EAS, EasSdk())]
