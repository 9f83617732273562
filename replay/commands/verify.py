"""``capture verify``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import msgspec
import typer

from capture.commands.options import DEFAULT_STORE, SharedOption
from capture.errors import UserError
from capture.export.files import write_atomically
from capture.export.manifest import MANIFEST_NAME, MANIFEST_SUFFIX, described_as_scrubbed, with_proof
from capture.export.tfrecord import WARMUP_PATH
from capture.savedmodel import read_saved_model
from capture.store.base import Store, open_store
from replay import plot as drawing
from replay.commands.verify_table import print_report
from replay.services import refuse_other_services
from replay.verdict import BEST, VerifyLevel
from replay.verify import HERD, How, Report, evidence_of, read_warmup_file
from replay.verify import verify as run_verify

#: What a manifest is told of a verification.
_PROOF = (
    "verdict",
    "level",
    "tensorflow",
    "model",
    "saved_model",
    "saved_model_sha256",
    "held_out_requests",
    "held_out_refused",
    "held_out_from",
    "held_out_to",
    "samples_judged",
    "judged_by_record_only",
    "byte_identical",
    "executor_keys",
)
#: Formats that can be judged, and whose requests judge them.
JUDGED = {"tfrecord": "tfserving", "eas-bin": "eas"}
#: Exit codes: the file has the best verdict of the level that was asked for; it has not; there is nothing usable to
#: judge.
PASSED, NOT_PASSED, UNUSABLE = 0, 1, 2


def verify(
    saved_model: Annotated[
        Path, typer.Option("--saved-model", help="Version directory with saved_model.pb.", metavar="DIR")
    ],
    warmup: Annotated[
        Path | None,
        typer.Option("--warmup", help=f"The warm-up file. Default: DIR/{WARMUP_PATH}; for eas-bin name it."),
    ] = None,
    traffic: Annotated[
        str, typer.Option("--traffic", help="The store whose held-out requests judge the file.", metavar="STORE")
    ] = DEFAULT_STORE,
    model: Annotated[str | None, typer.Option("--model", help="Whose requests; default: the store's only one.")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="tfrecord or eas-bin; default: by the file's name.")
    ] = None,
    warm_up_count: Annotated[
        int, typer.Option(min=1, help="EAS: how often the request is sent (metadata.rpc.warm_up_count).")
    ] = 5,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            help="fits (names alone, no TensorFlow), runs (C API), executor (C++ session, builds counted) or server;"
            " default: the best that can be had here.",
        ),
    ] = None,
    server_cmd: Annotated[
        str | None,
        typer.Option(
            "--server-cmd",
            help="Level server: this command, started with the file in place and without it. {model_name},"
            " {model_base_path}, {model_version}, {grpc_port}, {rest_port} and {monitoring_config} stand for what it"
            " shall serve.",
            metavar="CMD",
        ),
    ] = None,
    server_timeout: Annotated[float, typer.Option(min=1, help="Seconds until that server must be AVAILABLE.")] = 600,
    python: Annotated[
        str, typer.Option("--python", help="Run in this interpreter, of an environment with the server's TensorFlow.")
    ] = "",
    op_library: Annotated[
        list[Path] | None, typer.Option("--op-library", help="A shared object with custom ops; may be repeated.")
    ] = None,
    sessions: Annotated[
        int, typer.Option(min=1, help="A session group: so many sessions, of which the first is warmed up.")
    ] = 1,
    herd: Annotated[
        int, typer.Option(min=0, help="How many callers ask a cold model for each signature at once; 0: not tried.")
    ] = HERD,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Where the proof is noted; default: the one beside the file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Draw first calls, cold beside warm, into this PNG (needs warmtap[plot]).", metavar="PNG"
        ),
    ] = None,
    scrub: Annotated[
        bool,
        typer.Option(
            "--scrub",
            help="Tell of a failed request its code and node, no text that may quote it; so for scrubbed files.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    allow_shared_store: SharedOption = False,
) -> None:
    """Prove on real TensorFlow that a warm-up file helps: warm up as the server would, replay held-out requests, count
    graph builds.

    Exit code 0: proved, or the best that the --level asked for can say. 1: not, with the reasons. 2: nothing usable to
    judge.
    """
    try:
        how = _how(level, server_cmd, server_timeout, python, op_library or [], sessions, herd, warm_up_count)
        how = replace(how, discreet=scrub)
        if plot is not None:
            drawing.needs_matplotlib()
        report = _run(saved_model, warmup, traffic, model, form, how, manifest, allow_shared_store)
        summary = report.summary()
        if plot is not None:
            drawing.plot(summary, plot)
    except UserError as error:
        typer.echo(f"capture: error: {error}", err=True)
        raise typer.Exit(UNUSABLE) from None
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(summary), indent=2).decode())
    else:
        print_report(summary)
    raise typer.Exit(PASSED if report.decision.verdict == BEST[how.level or "executor"] else NOT_PASSED)


def _how(
    level: str | None,
    server: str | None,
    timeout: float,
    python: str,
    libraries: list[Path],
    sessions: int,
    herd: int,
    warm_up_count: int,
) -> How:
    """The options, as far as they go together. Raises UserError."""
    if level is None and server is not None:
        level = "server"
    chosen = next((one for one in get_args(VerifyLevel) if one == level), None)
    if level is not None and chosen is None:
        raise UserError(f"--level {level}: no such level; one of: {', '.join(get_args(VerifyLevel))}")
    if (chosen == "server") != (server is not None):
        raise UserError("--level server and --server-cmd CMD belong together")
    own = {"--python": python, "--op-library": libraries, "--sessions": sessions > 1}
    if chosen in ("server", "fits") and (given := next((name for name, value in own.items() if value), None)):
        raise UserError(f"{given}: level {chosen} runs no session of its own")
    if missing := next((path for path in libraries if not path.is_file()), None):
        raise UserError(f"--op-library {missing}: no such file")
    return How(chosen, warm_up_count, python, tuple(libraries), sessions, herd, server or "", timeout)


def _run(
    saved_model: Path,
    warmup: Path | None,
    traffic: str,
    model: str | None,
    form: str | None,
    how: How,
    manifest: Path | None,
    allow_shared: bool,
) -> Report:
    name = form or ("eas-bin" if warmup is not None and warmup.suffix == ".bin" else "tfrecord")
    if name not in JUDGED:
        raise UserError(f"--format {name}: no TensorFlow server warms up from it; one of: {', '.join(JUDGED)}")
    family = JUDGED[name]
    if family != "tfserving":
        if how.level == "server":
            raise UserError("--server-cmd: is for TF Serving; what EAS runs is judged at level executor")
    else:
        how = replace(how, warm_up_count=1)
    if warmup is None and family == "tfserving":
        warmup = saved_model / WARMUP_PATH
    if warmup is None:
        raise UserError("--warmup is needed: EAS has no fixed place for its warm-up file")
    source = open_store(traffic, allow_shared=allow_shared)
    try:
        model = model or _only_model(source, family, traffic)
        if model not in _models(source, family):
            refuse_other_services(source, model)
        try:
            file = read_warmup_file(warmup, family, model)
        except OSError as error:
            # Where it is the model that is not there, that is what is wrong.
            read_saved_model(saved_model)
            raise UserError(f"{warmup}: {error.strerror}; name the warm-up file with --warmup") from None
        rows = [row for row in source.signatures(model) if row.key.owner.family == family]
        if not rows:
            known = ", ".join(_models(source, family)) or "none"
            raise UserError(f"store {traffic}: nothing captured of model {model}; of {family} it has: {known}")

        if any(described_as_scrubbed(described, file.sha256) for _, described in _manifests(file.path, manifest)):
            how = replace(how, discreet=True)
        report = run_verify(
            saved_model,
            family,
            file,
            evidence_of(source, rows, family, model, file),
            model=model,
            how=how,
        )
    finally:
        source.close()
    if warmup.read_bytes() != file.data:
        raise UserError(f"{warmup}: was replaced while it was judged; run verify again")
    _tell_manifest(report, manifest)
    return report


def _tell_manifest(report: Report, named: Path | None) -> None:
    """Write what was proved into the manifest, if there is one of these very bytes. Raises UserError where one was
    named that is not."""
    summary = report.summary()
    proof = {key: summary[key] for key in _PROOF}
    path = report.warmup.path
    try:
        for place, described in _manifests(path, named):
            told = with_proof(described, report.warmup.sha256, proof)
            if told is not None:
                write_atomically(place, told, check=lambda _: None, mode=place.stat().st_mode & 0o777)
                return
    except OSError as error:
        typer.echo(f"note: {error.filename or path}: not updated: {error.strerror}", err=True)
        return
    if named is not None:
        raise UserError(f"--manifest {named}: there is no manifest of {path}")


def _manifests(path: Path, named: Path | None) -> Iterator[tuple[Path, bytes]]:
    """What stands where a manifest of this file may be. Raises OSError."""
    usual = [path.with_name(path.name + MANIFEST_SUFFIX), path.with_name(MANIFEST_NAME)]
    for place in usual if named is None else [named]:
        with suppress(FileNotFoundError):
            yield place, place.read_bytes()


def _models(source: Store, family: str) -> list[str]:
    return sorted({row.key.owner.model for row in source.signatures() if row.key.owner.family == family})


def _only_model(source: Store, family: str, traffic: str) -> str:
    models = _models(source, family)
    if len(models) == 1:
        return models[0]
    if not models:
        refuse_other_services(source, None)
        raise UserError(f"store {traffic}: nothing captured for {family}; `capture ls` lists what is there")
    raise UserError(f"store {traffic} holds {len(models)} models ({', '.join(models)}); choose one with --model")
