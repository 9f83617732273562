"""The proof: warm up as the server would, replay held-out production, count graph builds.

Two passes over the same requests, each in a session of its own: **cold**, without the file, and **warm**, behind it.
Requests run one at a time, so that each build belongs to one of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from capture.dialects.base import Dialect, Route, Unreadable
from capture.dialects.table import DIALECTS
from capture.export.tfrecord import TFRecordError, read_records, strip_version
from capture.schema import messages
from capture.schema.wire import WireError
from capture.signature import Misfit, SignatureDef, WireSignature, executor_key
from capture.store.base import HeldOut, RecordKey
from replay.calls import CALLERS, Caller, run_counted, signature_defs
from replay.executor.api import Executor
from replay.executor.session import open_executor
from replay.host_warmup import WarmupError
from replay.verdict import Decision, Judged, Pass, decide, figures

#: A group that was judged by one request is run this many times more, to know its steady latency.
REPEATS = 2


@dataclass(frozen=True, slots=True)
class WarmupFile:
    """A warm-up file as it is: its path, the requests in it, and their signatures by digest. ``unreadable`` says why
    its records could not be listed; the server decides what that means when the file is applied."""

    path: Path
    requests: tuple[bytes, ...]
    signatures: dict[str, WireSignature]
    unreadable: str = ""


@dataclass(slots=True)
class Report:
    """Everything that a verification found."""

    decision: Decision
    level: str
    tensorflow: str
    note: str
    judged: list[Judged]
    cold: Pass
    warm: Pass
    records: int
    not_fitting: list[tuple[WireSignature, str]]

    def summary(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "verdict": self.decision.verdict,
            "level": self.level,
            "tensorflow": self.tensorflow,
            "note": self.note,
            "reasons": list(self.decision.reasons),
            "records": self.records,
            "held_out_requests": len(self.judged),
            "byte_identical": sum(one.byte_identical for one in self.judged),
            "not_fitting": [{"line": str(signature), "reason": why} for signature, why in self.not_fitting],
            "executor_keys": len({one.group for one in self.judged}),
            "cold": figures(self.judged, self.cold),
            "warm": figures(self.judged, self.warm)
            | {"warmup_seconds": round(self.warm.warmup_seconds, 3), "warmup_builds": self.warm.warmup_builds},
        }


def read_warmup_file(path: Path, family: str, model: str) -> WarmupFile:
    """List what is in a warm-up file. Raises OSError."""
    data = path.read_bytes()
    requests: list[bytes] = []
    unreadable = ""
    if family == "eas":
        requests.append(data)
    else:
        try:
            for record in read_records(data):
                log = messages.PredictionLog.FromString(record)
                if log.WhichOneof("log_type") == "predict_log":
                    requests.append(messages.PredictLog.FromString(log.predict_log).request)
        except (TFRecordError, DecodeError) as error:
            unreadable = str(error)
    signatures = {}
    for request in requests:
        signature = _signature(family, model, request)
        if signature is not None:
            signatures[signature.digest] = signature
    return WarmupFile(path, tuple(requests), signatures, unreadable)


def verify(
    saved_model: Path,
    family: str,
    warmup: WarmupFile | None,
    held_out: Iterable[tuple[RecordKey, HeldOut]],
    *,
    model: str,
    warmup_count: int,
) -> Report:
    """Judge ``warmup`` (None: no file) by ``held_out`` on the model in ``saved_model``. Raises ExecutorError if the
    model cannot be loaded."""
    executor = open_executor(saved_model)
    try:
        judged, not_fitting = _judged(family, model, warmup, held_out, signature_defs(executor))
        level, version, note = executor.level, executor.tensorflow_version, executor.note
        cold = _replay(executor, CALLERS[family](executor), judged)
    finally:
        executor.close()
    # A session of its own: the cold one has built everything.
    executor = open_executor(saved_model)
    try:
        caller = CALLERS[family](executor)
        warm = Pass()
        if warmup is not None:
            warm = _warm_up(executor, caller, warmup, warmup_count)
        if not warm.load_error:
            done = _replay(executor, caller, judged)
            warm.results, warm.repeats = done.results, done.repeats
    finally:
        executor.close()
    decision = decide(judged, warm, warmup.signatures if warmup is not None else {})
    records = len(warmup.requests) if warmup is not None else 0
    return Report(decision, level, version, note, judged, cold, warm, records, not_fitting)


def _judged(
    family: str,
    model: str,
    warmup: WarmupFile | None,
    held_out: Iterable[tuple[RecordKey, HeldOut]],
    defs: dict[str, SignatureDef],
) -> tuple[list[Judged], list[tuple[WireSignature, str]]]:
    """The held-out requests that this model takes, oldest first, and those that it would refuse."""
    recorded = {_comparable(family, request) for request in warmup.requests} if warmup is not None else set()
    judged: list[Judged] = []
    not_fitting: dict[WireSignature, str] = {}
    for _, held in held_out:
        body = held.sample.body
        signature = _signature(family, model, body)
        if signature is None:
            continue
        try:
            group = str(executor_key(signature, defs))
        except Misfit as misfit:
            not_fitting[signature] = str(misfit)
        else:
            judged.append(Judged(signature, group, body, _comparable(family, body) in recorded))
    return judged, list(not_fitting.items())


def _comparable(family: str, body: bytes) -> bytes:
    """The bytes by which a held-out request and a record are the same one."""
    if family != "tfserving":
        return body
    try:
        return strip_version(body)
    except WireError:
        return body


def _dialect(family: str) -> Dialect:
    return next(dialect for dialect in DIALECTS if dialect.family == family)


def _signature(family: str, model: str, body: bytes) -> WireSignature | None:
    """The wire signature of a request body; None if it is not one."""
    dialect = _dialect(family)
    try:
        return dialect.read(
            Route(dialect, "Predict" if family == "tfserving" else "predict", model, ""), body
        ).signature
    except Unreadable:
        return None


def _warm_up(executor: Executor, caller: Caller, warmup: WarmupFile, count: int) -> Pass:
    done = Pass()
    before = executor.builds()
    start = time.perf_counter()
    try:
        caller.warm_up(warmup.path, count)
    except WarmupError as error:
        done.load_error = str(error)
    done.warmup_seconds = time.perf_counter() - start
    after = executor.builds()
    done.warmup_builds = None if before is None or after is None else after - before
    return done


def _replay(executor: Executor, caller: Caller, judged: list[Judged]) -> Pass:
    done = Pass()
    seen: dict[str, int] = {}
    for one in judged:
        done.results.append(run_counted(executor, caller, one.body))
        seen[one.group] = seen.get(one.group, 0) + 1
    for one in judged:
        if seen[one.group] == 1:
            done.repeats[one.group] = [run_counted(executor, caller, one.body).seconds for _ in range(REPEATS)]
    return done
