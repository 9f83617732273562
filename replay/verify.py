"""The proof: warm up as the server would, replay held-out production, count graph builds.

Two passes over the same requests, each in a session of its own: **cold**, without the file, and **warm**, behind it.
Requests run one at a time, so that each build belongs to one of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from capture.export.tfrecord import LOG_METHODS, TFRecordError, read_records
from capture.schema import messages
from capture.signature import SignatureDef, WireSignature
from replay.calls import CALLERS, Caller, run_counted, signature_defs
from replay.executor.api import Executor
from replay.executor.session import open_executor
from replay.host_warmup import WarmupError
from replay.traffic import Evidence, Judged, read_signature
from replay.verdict import Decision, Pass, decide, figures

#: A group that was judged by one request is run this many times more, to know its steady latency.
REPEATS = 2


@dataclass(frozen=True, slots=True)
class WarmupFile:
    """A warm-up file, read once: everything that is said of it is said of these bytes. ``requests`` are those that
    could be listed, each behind its method, ``signatures`` theirs by digest, ``records`` the number of records of any
    kind; ``unreadable`` says why the list ends early."""

    path: Path
    data: bytes
    requests: tuple[tuple[str, bytes], ...]
    signatures: dict[str, WireSignature]
    records: int
    unreadable: str = ""

    @property
    def sha256(self) -> str:
        """Of the file's bytes, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(slots=True)
class Report:
    """Everything that a verification found."""

    decision: Decision
    level: str
    tensorflow: str
    note: str
    model: str
    saved_model: Path
    saved_model_sha256: str
    warmup: WarmupFile
    evidence: Evidence
    cold: Pass
    warm: Pass

    def summary(self) -> dict[str, Any]:
        """Plain data for JSON."""
        evidence, judged = self.evidence, self.evidence.judged
        held_out = [one for one in judged if one.held_out]
        refused = sum(count for _, count in evidence.refused.values())
        return {
            "verdict": self.decision.verdict,
            "level": self.level,
            "tensorflow": self.tensorflow,
            "note": self.note,
            "model": self.model,
            "saved_model": f"{self.saved_model.resolve().parent.name}/{self.saved_model.resolve().name}",
            "saved_model_sha256": self.saved_model_sha256,
            "warmup_sha256": self.warmup.sha256,
            "reasons": list(self.decision.reasons),
            "notes": list(self.decision.notes),
            "records": self.warmup.records,
            "held_out_requests": len(held_out),
            "held_out_refused": refused,
            "held_out_unreadable": evidence.unreadable,
            "held_out_from": evidence.oldest,
            "held_out_to": evidence.newest,
            "samples_judged": len(judged) - len(held_out),
            "judged_by_record_only": evidence.by_record_only,
            "byte_identical": sum(one.byte_identical for one in judged),
            "not_fitting": [
                {"line": str(signature), "reason": why, "held_out_requests": count}
                for signature, (why, count) in evidence.refused.items()
            ],
            "executor_keys": len({one.group for one in judged}),
            "cold": figures(judged, self.cold),
            "warm": figures(judged, self.warm)
            | {"warmup_seconds": round(self.warm.warmup_seconds, 3), "warmup_builds": self.warm.warmup_builds},
        }


def read_warmup_file(path: Path, family: str, model: str) -> WarmupFile:
    """List what is in a warm-up file. Raises OSError."""
    data = path.read_bytes()
    requests: list[tuple[str, bytes]] = []
    records = 0
    unreadable = ""
    if family == "eas":
        requests.append(("", data))
        records = 1
    else:
        try:
            for record in read_records(data):
                records += 1
                log = messages.PredictionLog.FromString(record)
                if method := LOG_METHODS.get(kind := log.WhichOneof("log_type")):
                    requests.append((method, messages.PredictLog.FromString(getattr(log, kind)).request))
        except (TFRecordError, DecodeError) as error:
            unreadable = str(error)
    signatures = {}
    for method, request in requests:
        signature = read_signature(family, model, request, method=method)
        if signature is not None:
            signatures[signature.digest] = signature
    return WarmupFile(path, data, tuple(requests), signatures, records, unreadable)


def verify(
    saved_model: Path,
    family: str,
    warmup: WarmupFile,
    evidence_for: Callable[[Mapping[str, SignatureDef]], Evidence],
    *,
    model: str,
    warmup_count: int,
) -> Report:
    """Judge ``warmup`` on the model in ``saved_model`` by what ``evidence_for`` gathers for its SignatureDefs. Raises
    ExecutorError if the model cannot be loaded."""
    executor = open_executor(saved_model)
    try:
        fingerprint = _fingerprint(saved_model)
        evidence = evidence_for(signature_defs(executor))
        level, version, note = executor.level, executor.tensorflow_version, executor.note
        cold = _replay(executor, CALLERS[family](executor), evidence.judged)
    finally:
        executor.close()
    # A session of its own: the cold one has built everything.
    executor = open_executor(saved_model)
    try:
        caller = CALLERS[family](executor)
        warm = _warm_up(executor, caller, warmup, warmup_count)
        if not warm.load_error:
            done = _replay(executor, caller, evidence.judged)
            warm.results, warm.repeats = done.results, done.repeats
    finally:
        executor.close()
    decision = decide(evidence, warm, warmup.signatures, unreadable=warmup.unreadable)
    return Report(
        decision, level, version, note, model, saved_model, fingerprint, warmup, evidence, cold, warm
    )  # fmt: skip


def _fingerprint(saved_model: Path) -> str:
    """SHA-256 of saved_model.pb; empty for a model in another form."""
    try:
        with (saved_model / "saved_model.pb").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _warm_up(executor: Executor, caller: Caller, warmup: WarmupFile, count: int) -> Pass:
    done = Pass()
    before = executor.builds()
    start = time.perf_counter()
    try:
        caller.warm_up(warmup.data, warmup.path, count)
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
        done.results.append(run_counted(executor, caller, one.body, one.signature.method))
        seen[one.group] = seen.get(one.group, 0) + 1
    for one in judged:
        if seen[one.group] == 1:
            done.repeats[one.group] = [
                run_counted(executor, caller, one.body, one.signature.method).seconds for _ in range(REPEATS)
            ]
    return done
