"""TensorFlow Serving over REST: predict (row and column format), classify and regress, JSON in the body of a POST.

URLs: model_servers/http_rest_api_util.cc (ParseModelInfo). Bodies: util/json_tensor.cc. A request is stored as it was
sent, JSON: what the server makes of it depends on the model's SignatureDefs (:mod:`capture.convert`).

A 400 does not tell that nothing ran: kernels return INVALID_ARGUMENT too, and the answer in row format may fail behind
a run that succeeded. So a refusal is recognised by the server's own words, as over gRPC; whatever is not recognised
counts as unproven.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from capture.config import ListenerConfig
from capture.convert.json_value import JsonError, unescape
from capture.dialects.base import Ignored, Judgement, Opaque, Outcome, Response, Route, Unreadable
from capture.dialects.rest_scan import scan_examples, scan_predict
from capture.dialects.tfserving_calls import EXAMPLES_INPUT, FAMILY
from capture.dialects.tfserving_grpc import REFUSALS
from capture.schema.wire import FieldProbe
from capture.signature import Call, TensorSpec, wire_signature
from capture.wire.grpc import DecompressError, decompress

#: What a body may unpack to (util/net_http/compression/gzip_zlib.h: kMaxUncompressedBytes); beyond it the server fails.
MAX_GUNZIPPED_BYTES: Final = 100 << 20
#: Of an answer so much is looked at, for its error; those texts begin with what they say.
MAX_ERROR_BYTES: Final = 2048

_MODEL: Final = r"/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_POST: Final = re.compile(rf"{_MODEL}:(classify|regress|predict)", re.IGNORECASE | re.DOTALL)
_GET: Final = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:/versions/([0-9]+)|/labels/([^/:]+))?(/metadata)?", re.IGNORECASE | re.DOTALL
)
_PREFIX: Final = "/v1/models"
_INT64_MAX: Final = (1 << 63) - 1
#: Methods are told apart by case, although URLs are not (http_rest_api_handler.cc: ProcessRequest).
_METHODS: Final = {"predict": "REST Predict", "classify": "REST Classify", "regress": "REST Regress"}
_DT_STRING: Final = 7

_ERROR: Final = re.compile(rb'\s*\{\s*"error"\s*:\s*"((?:[^"\\]|\\.)*+)', re.DOTALL)
#: HTTP statuses of google.rpc.Code numbers (model_servers/http_server.cc).
_STATUS: Final = {3: 400, 5: 404, 9: 400, 12: 501, 13: 500}
#: (how the error begins, reason): of json_tensor.cc and http_rest_api_handler.cc, all before Session::Run.
_REFUSED: Final = (
    ("JSON Parse error: ", "not JSON"),
    ("JSON Value: ", "malformed body"),
    ("Failed to process element: ", "malformed body"),
    ("Encountered list at unexpected ", "malformed body"),
    ("Expecting object but got list at item ", "malformed body"),
    ("Expecting value/list but got object at item ", "malformed body"),
    ("Missing 'inputs' or 'instances' key", "malformed body"),
    ("Example must be JSON object but got JSON ", "malformed body"),
    ("Unexpected element type in feature: ", "malformed body"),
    ("Unable to base64 decode", "malformed body"),
    # Of older servers.
    ("Cannot convert JSON value: ", "malformed body"),
    ("Conversion of JSON Value: ", "an input's type has no JSON form"),
    ("Missing named input: ", "inputs do not match the signature"),
    ("instances is a plain list, but ", "inputs do not match the signature"),
    ("inputs is a plain value/list, but ", "inputs do not match the signature"),
    ("Serving signature name: ", "unknown signature"),
    ("Failed to get input map for signature: ", "unknown signature"),
    ("Malformed request: ", "malformed URL"),
    ("Failed to convert version: ", "malformed URL"),
)
#: The same where a kernel's text may begin alike (ParseExample: "Feature: x (data type: ...) is required").
_FEATURE: Final = re.compile(r"Feature: .* has (?:element with unexpected JSON type: |uint64 element\.)", re.DOTALL)
#: Errors of the answer: the model ran, and what came out has no JSON form.
_RAN: Final = ("Tensor name: ", "Failed to write JSON value for tensor type: ", "Cannot convert empty tensor map")
#: Statuses of what stands in front of a model server, or of the server for a URL that it does not serve.
_NOT_SERVED: Final = (401, 403, 404, 405, 413)


class Target(NamedTuple):
    """What a URL names; ``model``, ``version`` and ``label`` are empty where it names none."""

    model: str
    version: str
    label: str
    verb: str


@lru_cache(maxsize=1024)
def parse_target(path: str) -> Target | None:
    """The model call that a POST to this path (as sent, without its query) is; None if it is none."""
    match = _POST.fullmatch(path)
    if match is None or match[4] not in _METHODS:
        return None
    return _target(match, match[4])


def parse_question(path: str) -> Target | None:
    """The question that a GET of this path is, ``verb`` being ``status`` or ``metadata``; None if it is none."""
    match = _GET.fullmatch(path)
    return None if match is None else _target(match, "metadata" if match[4] else "status")


def _target(match: re.Match[str], verb: str) -> Target | None:
    version = match[2] or ""
    if version:
        number = int(version) if len(version) < 100 else _INT64_MAX + 1
        if number > _INT64_MAX:
            return None
        version = str(number)
    return Target(_decoded(match[1] or ""), version, _decoded(match[3] or ""), verb)


def _decoded(text: str) -> str:
    """As curl_easy_unescape does it: ``%41`` is A, ``+`` and a lone ``%`` are themselves."""
    return unquote_to_bytes(text).decode("utf-8", "replace")


class TFServingRest:
    """POST to /v1/models/M[/versions/V|/labels/L]:VERB. Others below /v1/models are counted by what they are."""

    name = "tfserving-rest"
    family = FAMILY
    framing: Literal["grpc", "body"] = "body"

    def route(self, http_method: bytes, path: str, listener: ListenerConfig) -> Route | Ignored | None:
        if path[: len(_PREFIX)].lower() != _PREFIX or (listener.service and listener.dialect != self.name):
            return None
        if http_method == b"POST":
            target = parse_target(path)
            if target is None:
                return Ignored("REST POST, malformed URL")
            return Route(self, _METHODS[target.verb], target.model, path)
        if http_method == b"GET" and (asked := parse_question(path)):
            return Ignored(f"REST GET model {asked.verb}")
        return Ignored("REST, other request")

    def unpacked(self, encoding: str, sent: bytes, max_bytes: int) -> bytes:
        """The body as the server reads it: gunzipped where the Content-Encoding speaks of gzip, otherwise as it is
        (evhttp_request.cc). Raises Unreadable."""
        if "gzip" not in encoding:
            return sent
        try:
            return decompress(b"gzip", sent, min(max_bytes, MAX_GUNZIPPED_BYTES))
        except DecompressError as error:
            text = f"gzip body: {error}"
            # Up to its own bound the server may have read it.
            raise (Opaque(text) if max_bytes < MAX_GUNZIPPED_BYTES else Unreadable(text)) from None

    def read(self, route: Route, body: bytes) -> Call:
        target = parse_target(route.path)
        version, label = ("", "") if target is None else (target.version, target.label)
        if route.method.startswith("REST Predict"):
            outline = scan_predict(body)
            tensors = tuple(sorted(TensorSpec(*tensor) for tensor in outline.tensors))
            method = f"REST Predict {outline.form}"
            names: tuple[str, ...] = tuple(tensor.name for tensor in tensors) if outline.named else ()
        else:
            outline = scan_examples(body)
            tensors = (TensorSpec(EXAMPLES_INPUT, _DT_STRING, (outline.examples,)),)
            method, names = route.method, (EXAMPLES_INPUT,)
        signature = wire_signature(FAMILY, route.model, method, outline.signature_name, names, ())
        return Call(signature, tensors, version, label)

    def response_probe(self, route: Route) -> FieldProbe | None:
        return _Beginning()

    def judge(self, route: Route, response: Response) -> Judgement:
        if response.aborted or not response.complete:
            return Judgement(Outcome.UNPROVEN, response.aborted or "no complete response")
        if 200 <= response.status < 300:
            return Judgement(Outcome.PROVEN)
        error = _error(response.probe)
        if error is None:
            outcome = Outcome.REFUSED if response.status in _NOT_SERVED else Outcome.UNPROVEN
            return Judgement(outcome, f"HTTP {response.status}")
        for beginning, reason in _REFUSED:
            if error.startswith(beginning):
                return Judgement(Outcome.REFUSED, reason)
        if _FEATURE.match(error):
            return Judgement(Outcome.REFUSED, "malformed body")
        method = route.method.removeprefix("REST ").partition(" ")[0]
        for code, beginning, reason in REFUSALS[method]:
            if beginning and _STATUS.get(code) == response.status and error.startswith(beginning):
                return Judgement(Outcome.REFUSED, reason)
        if error.startswith(_RAN):
            return Judgement(Outcome.UNPROVEN, "ran, and its outputs have no JSON form")
        return Judgement(Outcome.UNPROVEN, f"HTTP {response.status}")


def _error(beginning: bytes | None) -> str | None:
    """The server's error text, as far as it was kept; None where this is no answer of its own."""
    match = _ERROR.match(beginning or b"")
    if match is None:
        return None
    try:
        return unescape(match[1]).decode("utf-8", "replace")
    except JsonError:
        # Cut within an escape, or none of the server's.
        return match[1].decode("utf-8", "replace")


class _Beginning(FieldProbe):
    """Keeps the beginning of an answer."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        super().__init__(0, 0)
        self._text = b""

    def feed(self, data: bytes) -> None:
        if len(self._text) < MAX_ERROR_BYTES:
            self._text += data[: MAX_ERROR_BYTES - len(self._text)]

    @property
    def value(self) -> bytes | None:
        return self._text or None

    @property
    def whole(self) -> bool:
        return True
