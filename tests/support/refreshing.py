"""``capture refresh`` without TensorFlow: models of SignatureDefs alone, trials by script, local directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from capture.schema import messages
from capture.store.base import Store
from replay.refreshing.draft import Wanted
from replay.refreshing.history import History
from replay.refreshing.job import Job, Outcome, run_job
from replay.refreshing.local import LocalPlace
from replay.trial import Request, Trial, Tried
from tests.support.calls import predict
from tests.support.stores import NOW

#: serving_default: input x, outputs a and b of one tensor, c of another.
SIGNATURE = {"a": "y:0", "b": "y:0", "c": "z:0"}


def saved_model(directory: Path, outputs: dict[str, str] | None = None) -> Path:
    """A version directory with a model that has SignatureDefs and no graph."""
    definition = messages.SignatureDef(method_name="tensorflow/serving/predict")
    definition.inputs["x"].name = "x:0"
    definition.inputs["x"].dtype = 1
    for alias, name in (outputs or SIGNATURE).items():
        definition.outputs[alias].name = name
    entry = messages.SignatureEntry(key="serving_default", value=definition).SerializeToString()
    info = messages.MetaInfoDef(tags=["serve"]).SerializeToString()
    graph = field(1, info) + field(5, entry)
    directory.mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(field(2, graph))
    return directory


def field(number: int, data: bytes) -> bytes:
    assert len(data) < 1 << 14
    size = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
    return bytes([number << 3 | 2]) + size + data


def body(text: str, *outputs: str) -> bytes:
    """A request with this text among its bytes."""
    return predict(("x",), model="m", outputs=outputs, fill=text.encode())


class Script:
    """A trial that fails every body with ``bad`` in it; ``rounds`` are the bodies of each call."""

    def __init__(self) -> None:
        self.rounds: list[list[bytes]] = []

    def __call__(self, _: Path, __: str, requests: list[Request]) -> Trial:
        bodies = [one.body for one in requests]
        self.rounds.append(bodies)
        return Trial("executor", "2.21", [Tried("INVALID_ARGUMENT: bad" if b"bad" in one else "") for one in bodies])


def job(base: Path, model: str = "m", *, staging: Path | None = None, history: bool = False, **named: Any) -> Job:
    """A job on a directory of versions; its history is in ``base`` itself."""
    wanted = named.pop("wanted", Wanted())
    return Job(
        model,
        LocalPlace(base, staging, **{key: named.pop(key) for key in ("complete_when",) if key in named}),
        History(base) if history else None,
        wanted=wanted,
        staging=staging is not None,
        **named,
    )


def refreshed(
    store: Store, version: Path, trial: Callable[..., Trial] | None = None, *, now: float = NOW + 60, **named: Any
) -> Outcome:
    """What a pass over the base of one version directory made of that version."""
    done = run_job(job(version.parent, **named), store, trial=Script() if trial is None else trial, now=lambda: now)
    return next(one for one in done if one.version == version.name)
