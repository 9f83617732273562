"""Where a record goes: which of a target's ways it takes, by which name, and without a version of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from capture.dialects.table import EAS
from capture.errors import UserError
from capture.export.entries import Entry, Request
from capture.export.tfrecord import strip_version
from capture.schema.wire import LENGTH, WireError, fields, length_delimited
from capture.signature import REST_METHODS
from replay.client import Outgoing, eas_path, grpc_path

_EAS: Final = frozenset(dialect.family for dialect in EAS.values())
_FORM: Final = "write grpc://host:port or http://host:port[/path]"
#: /v1/models/M/versions/3:predict and .../labels/canary:predict
_PINNED: Final = re.compile(r"(/v1/models/[^/:]+)/(?:versions|labels)/[^/:]+(?=:)", re.IGNORECASE)
_MODEL: Final = re.compile(r"(/v1/models/)[^/:]+", re.IGNORECASE)
# Field numbers: ModelSpec.name; model_spec of a request and of a task; MultiInferenceRequest.tasks.
_NAME, _MODEL_SPEC, _TASKS = 1, 1, 1


class Unsendable(ValueError):
    """A record that cannot go to this target; the text says why."""


class Elsewhere(Unsendable):
    """A record that speaks another protocol than this target: it is for another server, and no failure."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server. ``address`` is ``host:port``; ``path`` what stands behind it, "" for nothing."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def address(self) -> str:
        """``host:port``, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"


def read_target(text: str) -> Target:
    """``grpc://host:port`` or ``http://host:port[/path]``. Raises UserError."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UserError(f"--target {text}: no address; {_FORM}") from None
    if "@" in parts.netloc:
        raise UserError(f"--target: a credential does not belong in it; {_FORM}, and say --auth")
    if parts.scheme not in ("grpc", "http") or not parts.hostname or not port or parts.fragment:
        raise UserError(f"--target {text}: no address; {_FORM}")
    path = ("" if parts.path == "/" else parts.path) + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "grpc" and path:
        raise UserError(f"--target {text}: gRPC has no path; {_FORM}")
    if not path.isascii() or not path.isprintable() or " " in path:
        raise UserError(f"--target {text}: the path is to be percent-encoded; {_FORM}")
    return Target(parts.scheme, parts.hostname, port, path)


def outgoing(
    entry: Entry, target: Target, *, model: str = "", send_as: str = "", keep_version: bool = False
) -> Outgoing:
    """The request of a record as it goes to ``target``. ``model`` is the name for records that tell none,
    ``send_as`` one for all. Raises Unsendable."""
    request = entry.request
    if request is None:
        raise Unsendable("; ".join(remark.text for remark in entry.remarks) or "holds no request")
    signature = entry.signature
    family = "" if signature is None else signature.family
    name = send_as or (signature.model if signature is not None else "") or model
    if signature is not None and family not in _EAS:
        if signature.method in REST_METHODS:
            if target.scheme != "http":
                raise Elsewhere("was captured from REST; say --target http://host:port")
            return Outgoing(_rest_path(request.path, target, send_as, keep_version), request.body, _headers(request))
        if target.scheme != "grpc":
            raise Elsewhere("was captured from gRPC; say --target grpc://host:port")
        if not name:
            raise Unsendable("names no model; say --model")
        try:
            return Outgoing(grpc_path(signature.method), _message(request.body, signature.method, name, keep_version))
        except WireError as error:
            raise Unsendable(f"cannot be read ({error})") from None
    if target.scheme != "http":
        raise Elsewhere("is a request to EAS; say --target http://host:port")
    return Outgoing(_eas_path(request.path, target, name, send_as), request.body, _headers(request))


def _headers(request: Request) -> dict[str, str]:
    """Those that tell what the body is."""
    known = {"content-type": "Content-Type", "content-encoding": "Content-Encoding"}
    return {known[name]: value for name, value in request.headers.items() if name in known}


def _rest_path(path: str, target: Target, send_as: str, keep_version: bool) -> str:
    if not path:
        raise Unsendable("its URL was not kept")
    if not keep_version:
        path = _PINNED.sub(r"\1", path, count=1)
    if send_as:
        path = _MODEL.sub(lambda found: found[1] + eas_path(send_as).rpartition("/")[2], path, count=1)
    return target.path.rstrip("/") + path


def _eas_path(path: str, target: Target, name: str, send_as: str) -> str:
    """The target's path, which is one service; then the service by its name; then the path that it was captured at."""
    if target.path:
        return target.path
    prefix, _, service = path.partition("/api/predict/")
    if path and not send_as and (prefix or unquote(service.partition("/")[0]) == name):
        return path
    if not name:
        raise Unsendable("names no service; say --model, or --target http://host:port/path")
    return eas_path(name)


def _message(body: bytes, method: str, name: str, keep_version: bool) -> bytes:
    """A message in which every model_spec says ``name``: put behind it, where it counts for more (protobuf merges)."""
    if not keep_version:
        body = strip_version(body, method)
    if method != "MultiInference":
        return _spoken_to(body, name)
    return b"".join(
        length_delimited(_TASKS, _spoken_to(body[field.value : field.end], name))
        if field.number == _TASKS and field.wire_type == LENGTH
        else body[field.start : field.end]
        for field in fields(body)
    )


def _spoken_to(message: bytes, name: str) -> bytes:
    """The same bytes where its model_spec says ``name`` already."""
    found = b""
    for field in fields(message):
        if field.number == _MODEL_SPEC and field.wire_type == LENGTH:
            for part in fields(message, field.value, field.end):
                if part.number == _NAME and part.wire_type == LENGTH:
                    found = message[part.value : part.end]
    spec = length_delimited(_MODEL_SPEC, length_delimited(_NAME, name.encode()))
    return message if found == name.encode() else message + spec
