"""The proof: warm up as the server would, replay held-out production, count graph builds.

The same requests are run in passes, each on a model loaded anew: **cold**, without the file; as a **herd**, each new
signature asked for by several callers at once, also without it; and **warm**, behind it. Cold and warm requests run one
at a time, so that each build belongs to one of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from capture.export.tfrecord import LOG_METHODS, TFRecordError, read_records
from capture.savedmodel import read_saved_model
from capture.schema import messages
from capture.signature import SignatureDef, WireSignature
from capture.store.base import Store, StoredSignature
from replay.calls import CALLERS, Caller
from replay.discretion import DiscreetExecutor, without_record
from replay.executor.api import Executor, Level
from replay.figures import Herd, Pass, executors, figures, total
from replay.host_warmup import WarmupError
from replay.passes import ExecutorTarget, herd, serial
from replay.tf_protos import wheel_directory
from replay.traffic import Evidence, Judged, gather, read_signature
from replay.verdict import Decision, VerifyLevel, decide, decide_static
from replay.workbench import Workbench

#: Callers of one new signature at once: what a pool of clients sends at the moment of a new version.
HERD: Final = 8


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


@dataclass(frozen=True, slots=True)
class How:
    """Where and how requests are run. ``level`` None takes the best that this machine can have; ``warm_up_count`` is
    EAS's; ``python`` the interpreter of another environment, empty for this one; ``libraries`` hold custom ops;
    ``sessions`` is the size of a session group, of which the warm-up reaches the first; ``herd`` the callers at once, 0
    for no such pass; ``server`` the command of level ``server``, which must be ready within ``server_timeout`` seconds;
    ``discreet``: no error quotes a value."""

    level: VerifyLevel | None = None
    warm_up_count: int = 1
    python: str = ""
    libraries: tuple[Path, ...] = ()
    sessions: int = 1
    herd: int = HERD
    server: str = ""
    server_timeout: float = 600.0
    discreet: bool = False


@dataclass(slots=True)
class Passes:
    """What was run, and on what: ``tensorflow`` is its version, empty where it is not known."""

    level: VerifyLevel
    tensorflow: str
    note: str
    cold: Pass
    herds: dict[str, Herd]
    warm: Pass


@dataclass(slots=True)
class Report:
    """Everything that a verification found."""

    decision: Decision
    model: str
    saved_model: Path
    saved_model_sha256: str
    warmup: WarmupFile
    evidence: Evidence
    passes: Passes

    def summary(self) -> dict[str, Any]:
        """Plain data for JSON."""
        evidence, judged, passes = self.evidence, self.evidence.judged, self.passes
        held_out = [one for one in judged if one.held_out]
        refused = sum(count for _, count in evidence.refused.values())
        return {
            "verdict": self.decision.verdict,
            "level": passes.level,
            "tensorflow": passes.tensorflow,
            "note": passes.note,
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
            "executor_keys": len({one.key for one in judged}),
            "executors": executors(judged, passes.cold, passes.herds, passes.warm),
            "cold": figures(judged, passes.cold),
            "herd": {"graph_builds": total(one.builds for one in passes.herds.values())} if passes.herds else None,
            "warm": figures(judged, passes.warm)
            | {"warmup_seconds": round(passes.warm.warmup_seconds, 3), "warmup_builds": passes.warm.warmup_builds},
            "sessions": [
                {"session": number, "graph_builds": builds}
                for number, builds in enumerate(
                    [total(ran.builds for ran in passes.warm.results), *passes.warm.others], start=1
                )
            ],
        }


def read_warmup_file(path: Path, family: str, model: str) -> WarmupFile:
    """List what is in a warm-up file. Raises OSError."""
    return list_warmup(path, path.read_bytes(), family, model)


def list_warmup(path: Path, data: bytes, family: str, model: str) -> WarmupFile:
    """The same of bytes that are, or are to be, at ``path``."""
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


def evidence_of(
    source: Store, rows: Sequence[StoredSignature], family: str, model: str, file: WarmupFile
) -> Callable[[Mapping[str, SignatureDef]], Evidence]:
    """What a store says about ``file``, for the SignatureDefs of a model. ``rows`` are the model's signatures; those of
    other families are passed over."""

    def gathered(defs: Mapping[str, SignatureDef]) -> Evidence:
        return gather(
            family,
            model,
            defs,
            records=file.requests,
            recorded=file.signatures.values(),
            held_out=(item for item in source.held_out(model) if item[0].owner.family == family),
            signatures=[row for row in rows if row.key.owner.family == family],
            sample=source.sample,
        )

    return gathered


def verify(
    saved_model: Path,
    family: str,
    warmup: WarmupFile,
    evidence_for: Callable[[Mapping[str, SignatureDef]], Evidence],
    *,
    model: str,
    how: How,
) -> Report:
    """Judge ``warmup`` on the model in ``saved_model`` by what ``evidence_for`` gathers for its SignatureDefs. Raises
    SavedModelError, ExecutorError or ServerError if the model cannot be read or loaded."""
    fingerprint = _fingerprint(saved_model)
    defs = read_saved_model(saved_model).signatures
    evidence = evidence_for(defs)
    if how.level == "fits":
        passes = Passes("fits", "", "nothing was run: judged by names alone", Pass(), {}, Pass())
        decision = decide_static(evidence, warmup.signatures, defs, unreadable=warmup.unreadable)
    else:
        if how.level == "server":
            from replay.private_server import on_server

            passes = on_server(how, saved_model, warmup, evidence.judged, model)
        else:
            passes = _on_executor(how, how.level, saved_model, family, warmup, evidence.judged)
        decision = decide(evidence, passes.warm, warmup.signatures, unreadable=warmup.unreadable)
    return Report(decision, model, saved_model, fingerprint, warmup, evidence, passes)


def _fingerprint(saved_model: Path) -> str:
    """SHA-256 of saved_model.pb; empty for a model in another form."""
    try:
        with (saved_model / "saved_model.pb").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _on_executor(
    how: How, level: Level | None, saved_model: Path, family: str, warmup: WarmupFile, judged: Sequence[Judged]
) -> Passes:
    # Requests are read with the messages of this environment, whatever the child has.
    wheel_directory()
    with Workbench(how.python, how.libraries, silent=how.discreet) as bench:

        def opened() -> Executor:
            executor = bench.open(saved_model, level)
            return DiscreetExecutor(executor, saved_model) if how.discreet else executor

        executor = opened()
        cold = serial(ExecutorTarget(executor, CALLERS[family](executor)), judged)
        executor.close()
        herds = {}
        if how.herd:
            # A session of its own: the cold one has built everything.
            executor = opened()
            herds = herd(ExecutorTarget(executor, CALLERS[family](executor)), judged, how.herd)
            executor.close()
        group = [opened() for _ in range(how.sessions)]
        callers = [CALLERS[family](one) for one in group]
        warm = _warm_up(group[0], callers[0], warmup, how.warm_up_count)
        if how.discreet:
            warm.load_error = without_record(warm.load_error)
        if not warm.load_error:
            first, *others = (
                serial(ExecutorTarget(one, caller), judged) for one, caller in zip(group, callers, strict=True)
            )
            warm.results, warm.repeats = first.results, first.repeats
            warm.others = [total(ran.builds for ran in other.results) for other in others]
        return Passes(executor.level, executor.tensorflow_version, executor.note, cold, herds, warm)


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
