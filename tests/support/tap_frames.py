"""Tap frames as a relay would send them, carrying real HTTP/1.1 and gRPC."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterable

import h2.config
import h2.connection
import msgspec

from capture import tap

Frame = tuple[int, int, int, bytes]

#: 2023-11-14, begin of an hour: the wall clock of the first frame, seconds since the epoch.
START = 1_700_000_000 - 1_700_000_000 % 3600.0
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def encode(frames: Iterable[Frame]) -> bytes:
    """Frames as they travel on the socket."""
    return b"".join(
        tap.HEADER.pack(kind, len(payload), flow, offset) + payload for kind, flow, offset, payload in frames
    )


def hello() -> Frame:
    """The greeting."""
    return (tap.HELLO, 0, 0, tap.HELLO_PAYLOAD.pack(tap.MAGIC, tap.VERSION))


def time_frame(wall: float) -> Frame:
    """The clock, seconds since the epoch; the monotonic one is true."""
    return (tap.TIME, 0, 0, tap.TIME_PAYLOAD.pack(time.monotonic_ns(), round(wall * 1e9)))


class Flow:
    """One flow; ``frames`` is what a relay would have sent for it so far."""

    def __init__(
        self, number: int = 1, *, listener: int = 0, peer: str = "10.1.2.3:4567", start: tuple[int, int] = (0, 0)
    ) -> None:
        self.number = number
        self.at = {tap.CLIENT: start[0], tap.SERVER: start[1]}
        opened = tap.FlowOpen(listener, peer, client_start=start[0], server_start=start[1])
        self.frames: list[Frame] = [(tap.OPEN, number, 0, msgspec.json.encode(opened))]

    def _data(self, kind: int, data: bytes) -> None:
        if data:
            self.frames.append((kind, self.number, self.at[kind], data))
            self.at[kind] += len(data)

    def client(self, data: bytes) -> Flow:
        self._data(tap.CLIENT, data)
        return self

    def server(self, data: bytes) -> Flow:
        self._data(tap.SERVER, data)
        return self

    def gap(self, client: int, server: int) -> Flow:
        self.frames.append((tap.GAP, self.number, 0, tap.GAP_PAYLOAD.pack(client, server)))
        self.at[tap.CLIENT] += client
        self.at[tap.SERVER] += server
        return self

    def eof_client(self) -> Flow:
        self.frames.append((tap.EOF_CLIENT, self.number, self.at[tap.CLIENT], b""))
        return self

    def closed(self, reason: str = "finished") -> Flow:
        self.frames.append((tap.CLOSED, self.number, 0, reason.encode()))
        return self

    # --- HTTP/1.1 ---

    def post(
        self,
        path: str,
        body: bytes,
        *,
        status: int = 200,
        headers: str = "",
        answer: bytes = b"ok",
        method: str = "POST",
    ) -> Flow:
        """One HTTP/1.1 exchange. ``headers`` are whole lines, each ended by CRLF."""
        self.client(f"{method} {path} HTTP/1.1\r\nHost: eas\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode())
        self.client(body)
        return self.server(f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)


class GrpcFlow(Flow):
    """A flow that speaks gRPC, through the h2 library on both ends."""

    def __init__(self, number: int = 1, **options: object) -> None:
        super().__init__(number, **options)  # type: ignore[arg-type]
        self._client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._client.initiate_connection()
        self._server.initiate_connection()
        self.pump()

    def pump(self) -> None:
        """Deliver what either end has to say until both are silent."""
        while True:
            sent, answered = self._client.data_to_send(), self._server.data_to_send()
            if not sent and not answered:
                return
            self.client(sent)
            self.server(answered)
            for end, data in ((self._server, sent), (self._client, answered)):
                for event in end.receive_data(data) if data else ():
                    length = getattr(event, "flow_controlled_length", 0)
                    if length:
                        end.acknowledge_received_data(length, event.stream_id)

    def _send(self, end: h2.connection.H2Connection, stream: int, data: bytes, *, last: bool) -> None:
        while data:
            size = min(len(data), end.local_flow_control_window(stream), end.max_outbound_frame_size)
            end.send_data(stream, data[:size])
            data = data[size:]
            self.pump()
        if last:
            end.end_stream(stream)
            self.pump()

    def request(
        self,
        message: bytes,
        *,
        path: str = PREDICT,
        compressed: bool = False,
        raw: bytes | None = None,
        end: bool = True,
        headers: Iterable[tuple[str, str]] = (),
    ) -> int:
        """Send a request; its stream. ``raw`` replaces the length-prefixed message."""
        stream = self._client.get_next_available_stream_id()
        encoding = [("grpc-encoding", "gzip")] if compressed else []
        self._client.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "model:8500"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("user-agent", "grpc-python/1.80"),
                *encoding,
                *headers,
            ],
        )
        self.pump()
        self._send(self._client, stream, message_bytes(message, compressed) if raw is None else raw, last=end)
        return stream

    def answer(
        self,
        stream: int,
        message: bytes = b"",
        *,
        status: int = 0,
        text: str = "",
        compressed: bool = False,
        http_status: int = 200,
        trailers: bool = True,
    ) -> None:
        """Answer with a message and trailers; without a message trailers only."""
        head = [(":status", str(http_status)), ("content-type", "application/grpc")]
        end = [("grpc-status", str(status)), *([("grpc-message", text)] if text else [])]
        if not message:
            self._server.send_headers(stream, head + (end if trailers else []), end_stream=True)
        else:
            self._server.send_headers(stream, head + ([("grpc-encoding", "gzip")] if compressed else []))
            self._send(self._server, stream, message_bytes(message, compressed), last=False)
            if trailers:
                self._server.send_headers(stream, end, end_stream=True)
        self.pump()

    def cancel(self, stream: int) -> None:
        """The client resets the stream (CANCEL)."""
        self._client.reset_stream(stream, 8)
        self.pump()

    def call(self, message: bytes, answer: bytes = b"", **answered: object) -> None:
        """A whole call."""
        self.answer(self.request(message), answer, **answered)  # type: ignore[arg-type]


def message_bytes(message: bytes, compressed: bool = False) -> bytes:
    """A length-prefixed gRPC message."""
    data = gzip.compress(message, mtime=0) if compressed else message
    return bytes([compressed]) + len(data).to_bytes(4, "big") + data
