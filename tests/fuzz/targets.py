"""What is fuzzed, and what must hold for any bytes. A target takes bytes and raises if something does not.

Pure, and free of the fuzzer: findings are replayed through the same functions by ``test_findings.py``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from capture import tap
from capture.admission import Admission
from capture.config import ListenerConfig
from capture.dialects.base import Ignored, Response, Route, Unreadable
from capture.dialects.table import BY_NAME, EAS
from capture.dialects.table import route as find_route
from capture.export.tfrecord import TFRecordError, frame, read_records, strip_version
from capture.pipeline import Pipeline
from capture.schema.wire import LENGTH, FieldProbe, WireError, fields
from capture.signature import Call
from capture.wire import events as ev
from capture.wire.detect import FlowObserver
from capture.wire.grpc import (
    DecompressError,
    GrpcReader,
    MessageData,
    MessageEnd,
    MessageError,
    MessageStart,
    decompress,
)
from tests.fuzz.rest import rest, rest_seeds
from tests.fuzz.script import script, steps
from tests.support.calls import (
    CLASSIFY,
    REGRESS,
    eas,
    multi_inference,
    of_examples,
    predict,
    predict_response,
    session_run,
)
from tests.support.eas_bodies import BODIES, PACK
from tests.support.tap_frames import GrpcFlow
from tests.support.wire_feed import HELD_BOUND, Step, bytewise, coalesce, load, run

VECTORS: Final = Path(__file__).resolve().parents[1] / "vectors"
LISTENERS: Final = (
    ListenerConfig("auto"),
    ListenerConfig("eas", dialect="eas-tensorflow", service="s"),
    ListenerConfig("grpc", dialect="tfserving-grpc"),
)
#: Longest flow that is fed byte by byte as well: for speed.
_BYTEWISE: Final = 4096
_PARTS: Final[dict[type, tuple[ev.Side, str]]] = {
    ev.RequestHead: (ev.Side.CLIENT, "head"),
    ev.RequestData: (ev.Side.CLIENT, "data"),
    ev.RequestEnd: (ev.Side.CLIENT, "end"),
    ev.ResponseHead: (ev.Side.SERVER, "head"),
    ev.ResponseData: (ev.Side.SERVER, "data"),
    ev.ResponseEnd: (ev.Side.SERVER, "end"),
}
_GRPC_PATHS: Final = (
    *(f"/tensorflow.serving.PredictionService/{name}" for name in ("Predict", "Classify", "Regress", "MultiInference")),
    "/tensorflow.serving.SessionService/SessionRun",
)
_OPEN_BYTES: Final = 64 << 10
_INFLATED: Final = 32 << 10


def observer(data: bytes) -> None:
    """Any bytes, splits, gaps and ends: events in their order, memory within the stated bound; splits do not show."""
    if not data:
        return
    flow = [step for _, step in steps(data[1:])]
    observed = FlowObserver(joined=bool(data[0] & 1))
    events: list[ev.Event] = []
    for step in flow:
        events += run(observed, [step])
        held = observed.held_bytes()
        assert 0 <= held <= HELD_BOUND, f"{held} bytes held"
    _in_order(events)
    if not data[0] & 1 and len(data) <= _BYTEWISE and not any(step[0] == "gap" for step in flow):
        apart = coalesce(run(FlowObserver(), bytewise(flow)))
        assert coalesce(events) == apart, "a split shows"


def _in_order(events: list[ev.Event]) -> None:
    """Within one stream and one direction: head, data, end; nothing after the exchange was given up."""
    state: dict[tuple[int, ev.Side], str] = {}
    gone: set[int] = set()
    for event in events:
        stream = getattr(event, "stream", None)
        if stream is None:
            continue
        assert stream not in gone, f"{event!r} after the end of its stream"
        if isinstance(event, ev.Lost | ev.Aborted):
            gone.add(stream)
        elif type(event) in _PARTS:
            side, part = _PARTS[type(event)]
            before = state.get((stream, side))
            assert (before is None) == (part == "head"), f"{event!r} after {before}"
            assert before != "end", f"{event!r} after the end"
            state[stream, side] = part


#: Bytes that a body may unpack to.
_UNPACKED_BOUND = 1 << 20


def dialects(data: bytes) -> None:
    """A body is a call or is refused with a reason; the same body is the same call; cutting the version out of a
    request changes nothing else."""
    if not data:
        return
    listener = LISTENERS[data[0] % 3]
    grpc = bool(data[0] & 4)
    path_size = data[0] >> 3
    path, body = data[1 : 1 + path_size].decode("latin-1"), data[1 + path_size :]
    if len(path) <= 1:
        # A path of one character stands for one of those that no fuzzer would come upon.
        path = _GRPC_PATHS[ord(path or "\0") % len(_GRPC_PATHS)] if grpc else "/api/predict/s"
    for found in (find_route(b"POST", path, grpc, listener), find_route(b"POST", path, not grpc, listener)):
        if isinstance(found, Ignored):
            assert found.what, "ignored without a word"
            continue
        _read(found, body)
    for method in ("REST Predict", "REST Classify"):
        _read(Route(BY_NAME["tfserving-rest"], method, "m", "/v1/models/m:predict"), body)
    for dialect in EAS.values():
        # Only settings lead to most of them.
        route = Route(dialect, "predict", "s", "/")
        _read(route, body)
        with contextlib.suppress(Unreadable):
            call, unpacked = dialect.read_sent(route, body, _UNPACKED_BOUND)
            assert len(unpacked) <= max(_UNPACKED_BOUND, len(body)), "unpacked beyond the bound"
            assert dialect.read(route, unpacked).signature == call.signature, "read and unpacked, two calls"


def _read(route: Route, body: bytes) -> None:
    dialect = route.dialect
    probe = dialect.response_probe(route)
    if probe is not None:
        probe.feed(body)
    for status in (0, 200, 404, 500):
        read = {} if probe is None else {"probe": probe.value, "probed": probe.whole}
        judgement = dialect.judge(route, Response(status=status, complete=True, **read))
        assert judgement.outcome
    call: Call | None
    try:
        call = dialect.read(route, body)
    except Unreadable as refusal:
        reason = str(refusal)
        call = None
    if call is None:
        assert 0 < len(reason) < 100, "a reason that is none, or not short"
        return
    assert call.tensors == tuple(sorted(call.tensors, key=lambda tensor: tensor.name))
    again = dialect.read(route, bytes(body))
    assert (again.signature.digest, again.tensors) == (call.signature.digest, call.tensors), "read twice, two calls"
    assert str(call.signature).isprintable(), "a signature that is not one line of text"
    assert call.shapes.isprintable(), "shapes that are not one line of text"
    if dialect is BY_NAME["tfserving-grpc"]:
        _without_version(dialect.read, route, body, call)


def _without_version(read: Callable[[Route, bytes], Call], route: Route, body: bytes, call: Call) -> None:
    try:
        cut = strip_version(body, route.method)
    except WireError as error:
        raise AssertionError(f"a request that protobuf reads is refused: {error}") from error
    left = read(route, cut)
    assert not left.version, "the version is still there"
    assert not left.version_label, "the label is still there"
    assert left.signature.digest == call.signature.digest, "the version changed the signature"
    assert left.tensors == call.tensors, "the version changed a tensor"
    assert strip_version(cut, route.method) == cut, "cutting twice is another request"


def messages(data: bytes) -> None:
    """Length-prefixed messages, compressed bodies, protobuf fields and record files: split as one likes, the same is
    found; what is broken is said to be."""
    cut = data[0] if data else 0
    pieces = [data[:cut], data[cut:]]
    _grpc(data, pieces)
    for encoding in (b"gzip", b"deflate", b"identity"):
        with contextlib.suppress(DecompressError):
            assert len(decompress(encoding, data, _INFLATED)) <= _INFLATED, "more than the bound"
    probe = FieldProbe(2, 1024)
    for piece in pieces:
        probe.feed(piece)
    if probe.value is not None:
        try:
            whole = b"".join(data[f.value : f.end] for f in fields(data) if f.number == 2 and f.wire_type == LENGTH)
        except WireError as error:
            raise AssertionError(f"the probe found a field in what is no message: {error}") from error
        assert probe.value == whole, "the probe found another field"
    try:
        records = list(read_records(data))
    except TFRecordError:
        return
    assert b"".join(frame(record) for record in records) == data, "records that do not make the file"


def _grpc(data: bytes, pieces: list[bytes]) -> None:
    def parse(parts: list[bytes]) -> tuple[list[tuple[int, bool, bytes, bool]], str]:
        reader = GrpcReader(1024)
        found: list[tuple[int, bool, bytes, bool]] = []
        for part in parts:
            for event in reader.feed(part):
                if isinstance(event, MessageStart):
                    found.append((event.length, event.compressed, b"", False))
                elif isinstance(event, MessageData):
                    length, compressed, body, _ = found[-1]
                    found[-1] = (length, compressed, body + event.data, False)
                elif isinstance(event, MessageEnd):
                    found[-1] = (*found[-1][:3], True)
                elif isinstance(event, MessageError):
                    return found, event.reason
        return found, ""

    whole, error = parse([data])
    assert parse(pieces) == (whole, error), "a split shows"
    assert all(len(body) == length for length, _, body, ended in whole if ended), "a message of another length"


def pipeline(data: bytes) -> None:
    """Tap frames of several flows up to the batch for the store: bodies within their budget, nothing raised."""
    counts: Counter[str] = Counter()

    def count(name: str, number: int) -> None:
        assert number >= 0, name
        counts[name] += number

    admission = Admission(
        signatures_per_version=20,
        new_signatures_per_hour=20,
        store_bytes=1 << 20,
        held_out_requests=4,
        held_out_bytes=1 << 16,
        held_out_seconds=3600,
        refresh_after=60.0,
    )
    piped = Pipeline(
        run="r",
        name="w",
        listeners=LISTENERS,
        admission=admission,
        request_bytes=_OPEN_BYTES // 2,
        open_bytes=_OPEN_BYTES,
        count=count,
        draw=lambda: 0.5,
    )
    piped.feed([(tap.TIME, 0, 0, tap.TIME_PAYLOAD.pack(0, 1_700_000_000_000_000_000))])
    opened: set[int] = set()
    for number, (flow, step) in enumerate(steps(data)):
        if flow not in opened:
            opened.add(flow)
            start = tap.FlowOpen(flow % len(LISTENERS), "10.0.0.1:2", client_start=7 * (flow == 3))
            piped.feed([(tap.OPEN, flow, 0, msgspec.json.encode(start))])
        piped.feed([_frame(flow, step)])
        if step[0] == "close":
            opened.discard(flow)
        assert 0 <= piped._budget.used <= _OPEN_BYTES, f"{piped._budget.used} bytes of bodies"
        if number % 8 == 7:
            _storable(piped)
    piped.close()
    assert piped._budget.used == 0, "bytes of bodies that nobody holds"
    _storable(piped)


def _frame(flow: int, step: Step) -> tap.Frame:
    if step[0] == "data":
        return (tap.CLIENT if step[1] == ev.Side.CLIENT else tap.SERVER, flow, 0, step[2])
    if step[0] == "gap":
        lost = (step[2], 0) if step[1] == ev.Side.CLIENT else (0, step[2])
        return (tap.GAP, flow, 0, tap.GAP_PAYLOAD.pack(*lost))
    if step[0] == "eof":
        return (tap.EOF_CLIENT if step[1] == ev.Side.CLIENT else tap.EOF_SERVER, flow, 0, b"")
    return (tap.CLOSED, flow, 0, b"finished")


def _storable(piped: Pipeline) -> None:
    batch = piped.take()
    for key, delta in batch.seen.items():
        # A call that failed in an earlier batch and has succeeded now takes back what that one counted.
        assert delta.proven + max(0, delta.unproven) > 0, key
        assert delta.proven + delta.unproven >= 0, key
        key.digest.encode()


def _flow_seeds() -> Iterator[list[Step]]:
    for path in sorted(VECTORS.glob("wire/**/*.json")):
        yield load(path)[0]


def _grpc_flow() -> list[Step]:
    flow = GrpcFlow()
    for body in (predict(model="m"), predict(["a", "b"], outputs=["y"], model="m")):
        flow.call(body, predict_response())
    sides = {tap.CLIENT: ev.Side.CLIENT, tap.SERVER: ev.Side.SERVER}
    return [("data", sides[kind], payload) for kind, _, _, payload in flow.frames if kind in sides]


def seeds(name: str) -> Iterator[bytes]:
    """What a fuzzer begins with."""
    bodies = [predict(), predict(["a", "b"], outputs=["y"], version=3), predict({"x": (1, (2, -1))}, label="l"), eas()]
    if name == "observer":
        for flow in _flow_seeds():
            yield b"\0" + script(flow)
            yield b"\1" + script(flow)
    elif name == "dialects":
        for body in bodies:
            for listener in range(3):
                yield bytes([listener]) + body
                yield bytes([listener | 4]) + body
        of_method = (
            (1, of_examples([(("age", 1.0), ("job", b"x"))] * 2, signature="s", version=3)),
            (2, of_examples(context=[("job", b"x")], label="l")),
            (3, multi_inference((CLASSIFY, "a"), (REGRESS, "b"), version=3)),
            (4, session_run(["a", "b"], ["y"], ["init"])),
            (4, session_run(aliases=True)),
        )
        for place, body in of_method:
            yield bytes([4 | 1 << 3, place]) + body
        for body in BODIES.values():
            yield b"\0" + body
            for pack in PACK.values():
                yield b"\0" + pack(body)
        for text in (
            b'{"signature_name": "s", "instances": [{"x": [1, NaN]}]}',
            b'{"inputs": {"b64": "aGk="}}',
            b'{"context": {}, "examples": [{"a": ["b", 1]}]}',
        ):
            yield b"\0\0" + text
        yield bytes([0 | len(b"/api/predict/x") << 3]) + b"/api/predict/x" + bodies[-1]
    elif name == "rest":
        yield from rest_seeds()
    elif name == "messages":
        for body in (*bodies, predict_response(outputs=b"abc")):
            yield b"\0" + len(body).to_bytes(4, "big") + body
            yield body
            yield frame(body) + frame(b"")
    else:
        post = b"POST /api/predict/s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(bodies[-1]) + bodies[-1]
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        eas_flow: list[Step] = [("data", ev.Side.CLIENT, post), ("data", ev.Side.SERVER, answer)] * 2
        for flow in (eas_flow, _grpc_flow(), *_flow_seeds()):
            for number in range(3):
                yield script(flow, number)
        yield script(_grpc_flow(), 0) + script(eas_flow, 1) + script(_grpc_flow(), 3)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "observer": observer,
    "dialects": dialects,
    "messages": messages,
    "pipeline": pipeline,
    "rest": rest,
}
