"""HTTP/1.1 against h11 and httptools, on generated legal traffic. (HTTP/2's oracles are h2, which makes the traffic in
``wire_traffic``, and hpack: ``test_fuzz``, ``test_recorded``, ``test_hpack``.)"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import h11
import httptools
from hypothesis import given
from hypothesis import strategies as st

from capture.wire import events as ev
from capture.wire.detect import FlowObserver
from capture.wire.events import Side
from tests.support.wire_feed import coalesce, load, run
from tests.support.wire_traffic import EXCHANGES, Exchange, collect, http1_bytes, http2_steps


def _by_h11(requests: list[bytes], responses: list[bytes]) -> list[tuple[object, ...]]:
    """(method, target, body, status, answer) of each exchange, h11 in both roles reading what it is handed."""
    found: list[tuple[object, ...]] = []
    server, client = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
    for request, response in zip(requests, responses, strict=True):
        server.receive_data(request)
        head = server.next_event()
        body = b""
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            body += event.data
        client.send(h11.Request(method=head.method, target=head.target, headers=[("host", "h")]))
        client.send(h11.EndOfMessage())
        client.receive_data(response)
        answer = b""
        status = client.next_event()
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            answer += event.data
        found.append((bytes(head.method), bytes(head.target), body, status.status_code, answer))
        server.send(h11.Response(status_code=204, headers=[]))
        server.send(h11.EndOfMessage())
        server.start_next_cycle()
        client.start_next_cycle()
    return found


def _by_httptools(raw: bytes, parser_type: type) -> list[bytes]:
    """Bodies, one per message."""
    bodies: list[bytes] = []

    class Handler:
        def on_message_begin(self) -> None:
            bodies.append(b"")

        def on_body(self, body: bytes) -> None:
            bodies[-1] += body

    parser_type(Handler()).feed_data(raw)
    return bodies


@given(st.lists(EXCHANGES, min_size=1, max_size=5))
def test_same_as_h11_and_httptools(exchanges: list[Exchange]) -> None:
    pairs = [http1_bytes(exchange) for exchange in exchanges]
    requests, responses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    steps = [("data", side, raw) for pair in pairs for side, raw in zip(Side, pair, strict=True)]
    seen = list(collect(run(FlowObserver(), steps)).values())
    assert [(e.method, e.path, e.body, e.status, e.answer) for e in seen] == _by_h11(requests, responses)
    assert [each.body for each in seen] == _by_httptools(b"".join(requests), httptools.HttpRequestParser)
    # httptools reads responses without their requests: the one to HEAD swallows what follows. So without HEAD only.
    if all(exchange.method != b"HEAD" for exchange in exchanges):
        assert [each.answer for each in seen] == _by_httptools(b"".join(responses), httptools.HttpResponseParser)


@given(st.lists(EXCHANGES, min_size=1, max_size=5), st.data())
def test_pipelined_in_any_chunks(exchanges: list[Exchange], data: st.DataObject) -> None:
    """All requests, then all responses, cut anywhere: pairs are those that h11 sees one by one."""
    pairs = [http1_bytes(exchange) for exchange in exchanges]
    steps = []
    for side in Side:
        raw = b"".join(pair[side] for pair in pairs)
        cuts = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw)), max_size=6))})
        steps += [("data", side, raw[a:b]) for a, b in pairwise(cuts)]
    seen = collect(run(FlowObserver(), steps)).values()
    found = [(each.method, each.path, each.body, each.status, each.answer) for each in seen]
    assert found == _by_h11([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def test_h11_refuses_what_is_refused() -> None:
    """Of what is refused here h11 refuses all but these."""
    lenient = set()
    for path in sorted((Path(__file__).parents[2] / "vectors/wire/http1").glob("refused-*.json")):
        steps, expected = load(path)
        side = Side.CLIENT if "undecodable client" in " ".join(expected) else Side.SERVER
        connection = h11.Connection(h11.SERVER if side == Side.CLIENT else h11.CLIENT)
        if side == Side.SERVER:
            connection.send(h11.Request(method="GET", target="/a", headers=[("host", "h")]))
            connection.send(h11.EndOfMessage())
        try:
            for step in steps:
                if step[1] == side:
                    connection.receive_data(step[2])
            for _ in range(6):
                if connection.next_event() in (h11.NEED_DATA, h11.PAUSED):
                    break
            lenient.add(path.stem.removeprefix("refused-"))
        except h11.RemoteProtocolError:
            pass
    # h11 takes lines without CR, any HTTP/1.x, and lets Transfer-Encoding win in a response and in HTTP/1.0. What
    # comes behind the first message it leaves to the next cycle.
    behind = {"extra-response", "after-good"}
    assert lenient - behind == {"bare-lf", "bare-lf-late", "response-cl-te", "te-http10", "version"}


@given(st.lists(EXCHANGES, min_size=1, max_size=6))
def test_http2_same_as_both_ends(exchanges: list[Exchange]) -> None:
    """A real h2 client and server made the flow, and accepted it from each other: what they sent is what is seen."""
    seen = coalesce(run(FlowObserver(), http2_steps(exchanges)))
    heads = [event for event in seen if isinstance(event, ev.RequestHead)]
    assert [(head.stream, head.method, head.target, head.headers) for head in heads] == [
        (2 * at + 1, exchange.method, exchange.path, exchange.fields) for at, exchange in enumerate(exchanges)
    ]
    ends = [event for event in seen if isinstance(event, ev.ResponseEnd)]
    assert [end.trailers for end in ends] == [((b"grpc-status", b"0"), *exchange.fields) for exchange in exchanges]
