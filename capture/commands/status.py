"""``capture status``."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from capture.commands.options import DEFAULT_ADMIN, DEFAULT_STORE
from capture.commands.tables import printable
from capture.diagnosis import Facts, Finding, diagnose
from capture.errors import UserError
from capture.store.base import shown_store
from capture.store.summary import store_facts

#: Seconds that a sidecar may take to answer.
ANSWER_SECONDS = 10.0
_MARK = {"ok": "ok", "note": "note", "wrong": "WRONG"}


def status(
    admin: Annotated[
        str, typer.Option("--admin", help="The sidecar's admin.listen.", metavar="HOST:PORT")
    ] = DEFAULT_ADMIN,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token, where the sidecar asks for one.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Judge by this store alone; no sidecar is asked.", metavar="STORE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Say in plain words whether capture works, and if not, why.

    Exit codes: 0 requests are captured, 1 something is wrong.
    """
    if store is not None:
        facts = store_facts(store)
        findings = diagnose(Facts(counters=facts.counters, store=facts))
        document: dict[str, Any] = {
            "store": {"url": shown_store(store), **msgspec.to_builtins(facts)},
            "findings": findings,
        }
    else:
        document = _ask(admin, token_file)
        findings = msgspec.convert(document["findings"], list[Finding])
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        _print(document, findings)
    raise typer.Exit(any(finding.severity == "wrong" for finding in findings))


def _ask(admin: str, token_file: Path | None) -> dict[str, Any]:
    """The sidecar's own view. Raises UserError."""
    host, _, port = admin.rpartition(":")
    if not port.isdigit():
        raise UserError(f"--admin {admin}: write host:port, as in the sidecar's admin.listen")
    headers = {} if token_file is None else {"Authorization": f"Bearer {_token(token_file)}"}
    connection = http.client.HTTPConnection(host.strip("[]") or "127.0.0.1", int(port), timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/api/v1/status", headers=headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise UserError(
            f"no sidecar answers at {admin}: {reason}; name its admin.listen with --admin, or judge by a store alone:"
            f" --store {DEFAULT_STORE}"
        ) from None
    finally:
        connection.close()
    if response.status == 401:
        raise UserError(f"the sidecar at {admin} asks for a token: --token-file FILE")
    try:
        document: dict[str, Any] = msgspec.json.decode(body, type=dict)
    except msgspec.MsgspecError:
        document = {}
    if response.status != 200 or "findings" not in document:
        raise UserError(f"what answers at {admin} is no sidecar of this version (HTTP {response.status})")
    return document


def _token(path: Path) -> str:
    token = path.read_bytes().strip()
    if not token.isascii() or not token.decode().isprintable():
        raise UserError(f"--token-file {path}: a token is one line of printable ASCII")
    return token.decode()


def _print(document: dict[str, Any], findings: list[Finding]) -> None:
    for finding in findings:
        print(f"{_MARK[finding.severity]}: {printable(finding.text)}")
    for listener in document.get("listeners", ()):
        tls = " (TLS)" if listener["tls"] else ""
        print(f"{listener['address']}{tls} -> {listener['upstream']}: {listener['state']}", file=sys.stderr)
    for pair in document.get("pairs", ()):
        print(f"pair {pair['number']}: relay {pair['relay_pid'] or 'none'}, worker {pair['worker']}", file=sys.stderr)
    if document.get("reasons"):
        print("not ready: " + printable("; ".join(document["reasons"])), file=sys.stderr)
