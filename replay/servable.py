"""One model version on an executor, and what is known of the requests that it answered."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from replay import tf_protos
from replay.executor import api
from replay.executor.api import Executor
from replay.predict import Plan, RequestError, find_signature, plan_predict

#: Requests that ``/stats`` remembers; older ones are dropped, the counts are not.
REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Answered:
    """One live request. ``code`` is the canonical code for gRPC and the HTTP status for EAS. ``seconds`` spans the
    whole handler. ``builds_delta`` is None where builds are unknown or another request overlapped: the counter is
    process-wide, so only requests that ran alone can be charged."""

    protocol: str
    code: int
    seconds: float
    builds_delta: int | None


class Ledger:
    """Counts live requests and charges graph builds to those that ran alone. Thread-safe."""

    class Open:
        """A request under way; the handler sets ``code``."""

        __slots__ = ("alone", "code")

        def __init__(self, *, alone: bool) -> None:
            self.alone = alone
            self.code = -1

    def __init__(self, builds: Callable[[], int | None], clock: Callable[[], float]) -> None:
        self._builds = builds
        self._clock = clock
        self._lock = threading.Lock()
        self._open: set[Ledger.Open] = set()
        self._recent: deque[Answered] = deque(maxlen=REMEMBERED)
        self._seen = 0
        self._total = 0
        self.builds_at_ready: int | None = None

    def ready(self) -> None:
        """Warm-up is over: what is built from here on, a caller waited for."""
        self.builds_at_ready = self._builds()
        self._seen = self.builds_at_ready or 0

    @contextmanager
    def request(self, protocol: str) -> Iterator[Ledger.Open]:
        """Around one live request."""
        with self._lock:
            opened = Ledger.Open(alone=not self._open)
            for other in self._open:
                other.alone = False
            self._open.add(opened)
        start = self._clock()
        try:
            yield opened
        finally:
            seconds = self._clock() - start
            now = self._builds()
            with self._lock:
                delta = now - self._seen if now is not None and opened.alone else None
                self._seen = now or 0
                self._open.discard(opened)
                self._total += 1
                self._recent.append(Answered(protocol, opened.code, seconds, delta))

    def snapshot(self) -> dict[str, Any]:
        """Plain data for ``GET /stats``."""
        with self._lock:
            recent, total = [asdict(answered) for answered in self._recent], self._total
        return {
            "builds_at_ready": self.builds_at_ready,
            "builds": self._builds(),
            "answered": total,
            "requests": recent,
        }


class Servable:
    """A loaded model under the name and version that clients ask for."""

    def __init__(self, name: str, version: int, executor: Executor) -> None:
        self.name = name
        self.version = version
        self.executor = executor
        self._response = tf_protos.load("tensorflow_serving.apis.predict_pb2").PredictResponse

    def run(self, plan: Plan, *, values: bool = True) -> tuple[bytes, ...]:
        """Run a plan; the outputs as serialized TensorProto. Raises RequestError with TensorFlow's code and text."""
        result = self.executor.run(plan.feeds, plan.fetches, values=values)
        if result.bad_feed is not None:
            # The server's text names the alias (GetInputValues), which the executor does not know.
            raise RequestError(result.code, f"tensor parsing error: {plan.input_aliases[result.bad_feed]}")
        if result.code != api.OK:
            raise RequestError(result.code, result.message)
        return result.outputs

    def predict(self, request: Any, *, live: bool = True) -> Any:
        """RunPredict: a ``PredictRequest`` to a ``PredictResponse``. The model's name and version are not looked at:
        that is the caller's part, and warm-up (``live=False``, which needs no values) skips it. Raises RequestError."""
        name, signature = find_signature(self.executor.signature_defs, request.model_spec.signature_name)
        plan = plan_predict(signature, request.inputs, request.output_filter)
        outputs = self.run(plan, values=live)
        response = self._response()
        response.model_spec.name = request.model_spec.name
        response.model_spec.signature_name = name
        if live:
            response.model_spec.version.value = self.version
        for alias, output in zip(plan.output_aliases, outputs, strict=live):
            response.outputs[alias].ParseFromString(output)
        return response
