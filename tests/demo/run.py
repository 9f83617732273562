"""``make demo``: the main job on real input, told as a short story.

A real SavedModel, a model server on TensorFlow's own session for each protocol, the sidecar in front, the servers' real
client libraries; then export, restart with the exported files as each server loads them, and proof. Everything in
``report.json`` is measured in this run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from capture.export.manifest import losses
from capture.export.tfrecord import WARMUP_PATH
from capture.savedmodel import read_saved_model
from capture.signature import executor_key
from capture.store.base import HeldOut, open_store
from replay.client import EasSender, Sender, TFServingSender
from replay.commands.verify_table import print_report
from tests.clients import commands
from tests.demo.traffic import traffic
from tests.support.net_sidecar import Sidecar
from tests.support.processes import ROOT, Process, run
from tests.support.tf_host import HostProcess
from tests.support.tf_models import saved_model
from tests.support.waiting import PATIENCE

MODEL = "ranking"
SERVICE = "rank"
REPORT = "report.json"
#: Callers at once in verify's herd, by family: each makes a cold model build the same graph again. Once is enough.
HERDS = {"tfserving": 8, "eas": 0}
#: What verify draws, by family.
PICTURE = "verify-{}.png"
#: Of the model: a graph of a size at which callers notice that it is built.
LAYERS = 150
#: Where the tests keep their models too.
MODELS = ROOT / ".pytest_cache" / "d" / "saved_models"
#: Calls over gRPC and over HTTP; of the former so many that the server refuses.
GRPC_CALLS, GRPC_REFUSED, EAS_CALLS = 240, 6, 160
#: How often EAS sends its one warm-up request (metadata.rpc.warm_up_count, its documented default).
WARM_UP_COUNT = 5


@dataclass(frozen=True, slots=True)
class Protocol:
    """One of the two protocols: its words, and how to serve, send and name its model."""

    family: str
    title: str
    model: str
    host: Callable[..., HostProcess]
    sender: Callable[[str], Sender]


def tf_host(version_dir: Path, *arguments: str) -> HostProcess:
    """The model behind TF Serving's gRPC, warmed by the version's own warm-up file if it has one."""
    return HostProcess(version_dir, f"--model-name={MODEL}", *arguments, eas=False)


def eas_host(version_dir: Path, *arguments: str) -> HostProcess:
    """The model behind EAS's HTTP."""
    return HostProcess(version_dir, f"--model-name={MODEL}", *arguments, grpc=False)


PROTOCOLS = (
    Protocol("tfserving", "TF Serving", MODEL, tf_host, lambda target: TFServingSender(target, PATIENCE)),
    Protocol("eas", "PAI-EAS", SERVICE, eas_host, lambda target: EasSender(target, SERVICE, PATIENCE)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    out = parser.parse_args().out.resolve()
    if (out / REPORT).exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        parser.error(f"{out} is not empty and no earlier demonstration; name another directory")
    # From here on the directory is ours to replace.
    (out / REPORT).write_text("{}\n")
    # Built by TensorFlow where no run before this one has left it.
    report = demo(out, saved_model(MODELS, "ranking", 1, "--layers", str(LAYERS)))
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    say(f"\nAll of this is in {out.name}/{REPORT}.")


def say(text: str) -> None:
    """A line of the story."""
    print(text, flush=True)


def capture(*arguments: str, ok: tuple[int, ...] = (0,)) -> str:
    """The command ``capture``; its standard output."""
    return run([sys.executable, "-m", "capture", *arguments], ok=ok)


def demo(out: Path, model: Path) -> dict[str, Any]:
    """The whole story from the SavedModel in ``model`` on; the report."""
    version_dir = out / "models" / MODEL / "1"
    shutil.copytree(model, version_dir)
    signatures = [one for one in read_saved_model(version_dir).signatures.values() if one.inputs]
    inputs = {alias for one in signatures for alias in one.inputs}
    outputs = {alias for one in signatures for alias in one.outputs}
    say(
        f"1. A SavedModel: {len(inputs)} inputs (string, float and int64 tensors), {len(outputs)} outputs,"
        f" {len(signatures)} signatures, any batch size."
    )
    store = out / "warmtap.sqlite"

    say("2. The sidecar in front of both servers, and real clients: tensorflow-serving-api and the EAS SDK.")
    sent = _production(version_dir, store)

    listed = json.loads(capture("ls", "--store", str(store), "--json"))
    counters = listed["counters"]
    report: dict[str, Any] = {
        "requests_sent": sum(sent.values()),
        "requests_observed": counters["requests_observed"],
        "requests_refused": counters["requests_refused"],
        "wire_signatures": len(listed["signatures"]),
        "executor_keys": 0,
        "losses": sum(losses(counters).values()),
        "losses_by_counter": losses(counters),
        "exported": {},
        "protocols": {},
    }
    say(
        f"   {report['requests_sent']} requests sent, {report['requests_observed']} observed,"
        f" {report['wire_signatures']} wire signatures, losses {report['losses']}."
    )

    say("3. Export: what a warm-up file must hold, most used first.")
    tfrecord = version_dir / WARMUP_PATH
    tfrecord.parent.mkdir()
    fitted = ("--store", str(store), "--saved-model", str(version_dir))
    capture("export", "--format", "tfrecord", "--model", MODEL, *fitted, "--out", str(tfrecord))
    bins = out / "eas"
    capture("export", "--format", "eas-bin", "--model", SERVICE, *fitted, "--out", str(bins))
    manifests = {
        "tfrecord": json.loads(tfrecord.with_name(tfrecord.name + ".manifest.json").read_bytes()),
        "eas-bin": json.loads((bins / "manifest.json").read_bytes()),
    }
    paths = {"tfrecord": tfrecord, "eas-bin": bins}
    for name, manifest in manifests.items():
        records = len(manifest["records"])
        report["exported"][name] = {"path": str(paths[name].relative_to(out)), "records": records}
        say(f"   {name}: {records} records in {paths[name].relative_to(out)}, {_share(manifest)} of the calls seen.")

    say("4. Restart: each server without its warm-up file, then with it, EAS also behind the gate; held-out requests.")
    first_bin = bins / manifests["eas-bin"]["files"][0]["name"]
    warm_arguments = {
        "tfserving": (),
        "eas": (f"--warm-up-data-path={first_bin}", f"--warm-up-count={WARM_UP_COUNT}"),
    }
    cold_arguments = {"tfserving": ("--no-enable-model-warmup",), "eas": ()}
    files = {"tfserving": tfrecord, "eas": first_bin}
    for protocol in PROTOCOLS:
        keys, held_out = _captured(store, protocol, version_dir)
        measured = {
            "wire_signatures": sum(row["family"] == protocol.family for row in listed["signatures"]),
            "executor_keys": keys,
            "cold": _live(protocol, version_dir, cold_arguments[protocol.family], held_out),
            "warm": _live(protocol, version_dir, warm_arguments[protocol.family], held_out),
        }
        if protocol.family == "eas":
            # Its file warms one signature; the gate sends the others before the server is called ready.
            measured["gated"] = _live(protocol, version_dir, warm_arguments["eas"], held_out, gate=bins)
        report["protocols"][protocol.family] = measured
        report["executor_keys"] += keys
        _tell(protocol, measured)

    say("5. Proof: capture verify, on TensorFlow's own session, judged by requests that are in no file.")
    for protocol in PROTOCOLS:
        verified = json.loads(
            capture(
                "verify", "--saved-model", str(version_dir), "--traffic", str(store), "--model", protocol.model,
                "--warmup", str(files[protocol.family]), "--warm-up-count", str(WARM_UP_COUNT), "--json",
                "--plot", str(out / PICTURE.format(protocol.family)), "--herd", str(HERDS[protocol.family]),
                ok=(0, 1),
            )
        )  # fmt: skip
        report["protocols"][protocol.family]["verify"] = {
            key: verified[key]
            for key in (
                "level", "verdict", "held_out_requests", "byte_identical", "reasons", "executors", "cold", "warm"
            )
        }  # fmt: skip
        say(f"\n   {protocol.title}; the picture is {out.name}/{PICTURE.format(protocol.family)}:")
        print_report(verified)
    _tell_eas(report, manifests["eas-bin"])
    return report


# --- production -------------------------------------------------------------------------------------------------------


def _production(version_dir: Path, store: Path) -> dict[str, int]:
    """Real clients through the sidecar; the requests sent, by family."""
    grpc_plan = traffic(GRPC_CALLS, 1, every_output_by_name=True, refused=GRPC_REFUSED)
    eas_plan = traffic(EAS_CALLS, 2, every_output_by_name=False)
    with tf_host(version_dir) as grpc_server, eas_host(version_dir) as eas_server:
        upstreams = (grpc_server.grpc, eas_server.eas)
        settings = store.with_name("sidecar.yaml")
        settings.write_bytes(
            msgspec.yaml.encode(
                {
                    "listeners": [{"listen": "127.0.0.1:0", "upstream": one} for one in upstreams],
                    # Every request is counted here, however slow the machine is.
                    "capture": {"store": str(store), "shed_lag": 0},
                }
            )
        )
        with Sidecar("proxy", "--config", str(settings), cwd=store.parent, module="capture") as sidecar:
            grpc_address, eas_address = (f"127.0.0.1:{port}" for port in sidecar.ready())
            clients = {
                "tfserving": _client(commands.tfserving_client(grpc_address, MODEL)),
                "eas": _client(commands.eas_client(f"http://{eas_address}", SERVICE, "--token", "t")),
            }
            answers = {
                family: json.loads(_talk(process, plan))
                for (family, process), plan in zip(clients.items(), (grpc_plan, eas_plan), strict=True)
            }
            sent = {family: answer["sent"] for family, answer in answers.items()}
            _wait_observed(store, sum(sent.values()))
    for family, answer in answers.items():
        say(f"   {family}: {answer['sent']} calls, {answer['ok']} answered, {len(answer['errors'])} refused.")
    return sent


def _client(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _talk(process: subprocess.Popen[str], plan: list[dict[str, Any]]) -> str:
    output, errors = process.communicate(json.dumps(plan))
    if process.returncode:
        raise RuntimeError(f"a client failed: {errors}")
    return output


def _wait_observed(store: Path, requests: int) -> None:
    """The worker may lag: wait until it has read everything, or say what is missing by going on."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        source = open_store(str(store))
        observed = source.counters().get("requests_observed", 0)
        source.close()
        if observed >= requests:
            return
        time.sleep(0.1)


# --- cold and warm ----------------------------------------------------------------------------------------------------


def _captured(store: Path, protocol: Protocol, version_dir: Path) -> tuple[int, list[tuple[str, HeldOut]]]:
    """Of one protocol: the executor keys of all signatures that were captured, counted, and the held-out requests with
    theirs."""
    defs = read_saved_model(version_dir).signatures
    source = open_store(str(store))
    keys = {row.key.digest: str(executor_key(row.signature, defs)) for row in source.signatures(protocol.model)}
    held_out = [(keys[key.digest], held) for key, held in source.held_out(protocol.model)]
    source.close()
    return len(set(keys.values())), held_out


def _live(
    protocol: Protocol,
    version_dir: Path,
    arguments: tuple[str, ...],
    held_out: list[tuple[str, HeldOut]],
    gate: Path | None = None,
) -> dict[str, Any]:
    """Start a server, with ``gate`` wait until a gate with these records is ready, and send it the held-out requests
    one at a time; what its own counter and the caller's clock say. ``warmup_builds`` are those before that."""
    first: dict[str, float] = {}
    later: list[float] = []
    with protocol.host(version_dir, *arguments) as server:
        if gate is not None:
            with Process("capture", "replay", str(gate), "--target", f"http://{server.eas}", "--gate", "0") as process:
                process.wait_for("msg=ready")
        gated = server.new_builds()
        before = None if server.builds is None else server.builds + gated
        sender = protocol.sender(server.grpc if protocol.family == "tfserving" else server.eas)
        for key, held in held_out:
            answer = sender.send(held.sample.body)
            if answer.error:
                raise RuntimeError(f"{protocol.title}: a held-out request failed: {answer.error}")
            if key in first:
                later.append(answer.seconds)
            else:
                first[key] = answer.seconds
        sender.close()
        builds = server.new_builds() - gated
    return {
        "warmup_builds": before,
        "graph_builds": builds,
        "first_ms_max": round(1000 * max(first.values()), 2),
        "steady_ms_p50": round(1000 * median(later), 2),
    }


# --- telling ----------------------------------------------------------------------------------------------------------


def _share(manifest: dict[str, Any]) -> str:
    return f"{100 * manifest['coverage']['share']:.1f} %"


def _tell(protocol: Protocol, measured: dict[str, Any]) -> None:
    say(f"   {protocol.title}, {measured['executor_keys']} executor keys:")
    for name in ("cold", "warm", "gated"):
        if (one := measured.get(name)) is None:
            continue
        say(
            f"     {name:>5}: {one['graph_builds']:>2} graphs built while a caller waited,"
            f" slowest first call {one['first_ms_max']:8.1f} ms, steady {one['steady_ms_p50']:6.1f} ms"
        )


def _tell_eas(report: dict[str, Any], manifest: dict[str, Any]) -> None:
    left = report["protocols"]["eas"]["warm"]["graph_builds"]
    if left:
        say(
            f"   EAS reads one warm-up file: it warmed the most used of {len(manifest['records'])} signatures."
            f" {left} graphs remain to be built by first callers; behind `capture replay --gate`"
            f" {report['protocols']['eas']['gated']['graph_builds']}."
        )


if __name__ == "__main__":
    main()
