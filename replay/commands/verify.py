"""``capture verify``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from capture.commands.options import DEFAULT_STORE, SharedOption
from capture.commands.tables import print_table, printable
from capture.errors import UserError
from capture.export.files import write_atomically
from capture.export.manifest import MANIFEST_NAME, MANIFEST_SUFFIX, with_proof
from capture.export.tfrecord import WARMUP_PATH
from capture.signature import SignatureDef
from capture.store.base import Store, open_store
from replay.services import refuse_other_services
from replay.traffic import Evidence, Judged, gather
from replay.verdict import Pass
from replay.verify import Report, read_warmup_file
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
#: Exit codes: the file is proved; it is not; there is nothing usable to judge.
PROVED, NOT_PROVED, UNUSABLE = 0, 1, 2


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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    allow_shared_store: SharedOption = False,
) -> None:
    """Prove on real TensorFlow that a warm-up file helps: warm up as the server would, replay held-out requests, count
    graph builds.

    Exit code 0: proved. 1: not proved, with the reasons. 2: nothing usable to judge.
    """
    try:
        report = _run(saved_model, warmup, traffic, model, form, warm_up_count, allow_shared_store)
    except UserError as error:
        typer.echo(f"capture: error: {error}", err=True)
        raise typer.Exit(UNUSABLE) from None
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report.summary()), indent=2).decode())
    else:
        _print(report)
    raise typer.Exit(PROVED if report.decision.verdict == "proved" else NOT_PROVED)


def _run(
    saved_model: Path,
    warmup: Path | None,
    traffic: str,
    model: str | None,
    form: str | None,
    warm_up_count: int,
    allow_shared: bool,
) -> Report:
    name = form or ("eas-bin" if warmup is not None and warmup.suffix == ".bin" else "tfrecord")
    if name not in JUDGED:
        raise UserError(f"--format {name}: no TensorFlow server warms up from it; one of: {', '.join(JUDGED)}")
    family = JUDGED[name]
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
            raise UserError(f"{warmup}: {error.strerror}; name the warm-up file with --warmup") from None
        rows = [row for row in source.signatures(model) if row.key.owner.family == family]
        if not rows:
            known = ", ".join(_models(source, family)) or "none"
            raise UserError(f"store {traffic}: nothing captured of model {model}; of {family} it has: {known}")

        def evidence_for(defs: Mapping[str, SignatureDef]) -> Evidence:
            return gather(
                family,
                model,
                defs,
                records=file.requests,
                recorded=file.signatures.values(),
                held_out=(item for item in source.held_out(model) if item[0].owner.family == family),
                signatures=rows,
                sample=source.sample,
            )

        report = run_verify(
            saved_model,
            family,
            file,
            evidence_for,
            model=model,
            warmup_count=1 if family == "tfserving" else warm_up_count,
        )
    finally:
        source.close()
    if warmup.read_bytes() != file.data:
        raise UserError(f"{warmup}: was replaced while it was judged; run verify again")
    _tell_manifest(report)
    return report


def _tell_manifest(report: Report) -> None:
    """Write what was proved into the manifest beside the file, if there is one of these very bytes."""
    summary = report.summary()
    proof = {key: summary[key] for key in _PROOF}
    path = report.warmup.path
    for beside in (path.with_name(path.name + MANIFEST_SUFFIX), path.with_name(MANIFEST_NAME)):
        try:
            told = with_proof(beside.read_bytes(), report.warmup.sha256, proof)
            if told is not None:
                write_atomically(beside, told, check=lambda _: None, mode=beside.stat().st_mode & 0o777)
                return
        except FileNotFoundError:
            continue
        except OSError as error:
            typer.echo(f"note: {beside}: not updated: {error.strerror}", err=True)


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


def _print(report: Report) -> None:
    rows = []
    for group, places in _groups(report.evidence.judged).items():
        first = report.evidence.judged[places[0]]
        rows.append(
            (
                first.signature.digest[:15],
                str(len(places)),
                *_cells(report.cold, group, places),
                *_cells(report.warm, group, places),
                printable(str(first.signature)),
            )
        )
    print_table(
        (
            "SIGNATURE",
            "JUDGED BY",
            "COLD BUILDS",
            "FIRST MS",
            "STEADY MS",
            "WARM BUILDS",
            "FIRST MS",
            "STEADY MS",
            "LINE",
        ),
        rows,
        right=frozenset({"JUDGED BY", "COLD BUILDS", "FIRST MS", "STEADY MS", "WARM BUILDS"}),
    )
    for note in report.decision.notes:
        print(f"note: {printable(note)}")
    for reason in report.decision.reasons:
        print(f"{report.decision.verdict}: {printable(reason)}")
    if report.note:
        print(f"note: {report.note}")
    summary = report.summary()
    stored = summary["held_out_requests"] + summary["held_out_refused"] + summary["held_out_unreadable"]
    print(
        f"verdict: {report.decision.verdict} at level {report.level} (TensorFlow {report.tensorflow})"
        f" for {printable(report.model)} on {summary['saved_model']}:"
        f" {summary['held_out_requests']} of {stored} held-out requests judged"
        f" ({summary['byte_identical']} byte-identical to a record), {summary['held_out_refused']} refused by it,"
        f" {summary['executor_keys']} executor keys, {summary['records']} records"
        f" ({summary['judged_by_record_only']} executors judged by their record alone);"
        f" builds cold {_count(summary['cold'])}, warm {_count(summary['warm'])}"
    )


def _count(figures: dict[str, Any]) -> str:
    return "unknown" if figures["graph_builds"] is None else str(figures["graph_builds"])


def _groups(judged: list[Judged]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(judged):
        groups.setdefault(one.group, []).append(place)
    return groups


def _cells(done: Pass, group: str, places: list[int]) -> tuple[str, str, str]:
    """(builds, first ms, steady ms) of one group in one pass."""
    if not done.results:
        return "-", "-", "-"
    ran = [done.results[place] for place in places]
    later = sorted([one.seconds for one in ran[1:]] + done.repeats.get(group, []))
    builds = [one.builds for one in ran]
    return (
        "?" if None in builds else str(sum(count or 0 for count in builds)),
        f"{1000 * ran[0].seconds:.1f}",
        f"{1000 * later[len(later) // 2]:.1f}" if later else "-",
    )
