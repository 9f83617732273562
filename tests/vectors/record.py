"""Records what real clients and servers send: a relay between them writes each conversation as a vector.

    python tests/vectors/record.py [--tools DIR] [NAME...]

Not part of the test run. Needs grpcio, grpclib, requests and aiohttp (this environment), curl, nghttp and nghttpd
(Debian nghttp2-client, nghttp2-server), and under DIR: ``node_modules`` with @grpc/grpc-js and @bufbuild/buf, and
``grpcurl``. A tool that is missing leaves its vectors as they are, and says so. The expected events are written by the
observer and are not evidence by themselves: ``test_recorded.py`` reads the same bytes with the hpack library and
framing of its own, and compares.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import grpc  # noqa: E402
from aiohttp import web  # noqa: E402

from capture.wire.events import Side  # noqa: E402
from tests.support.wire_feed import Step, dump, lines_of  # noqa: E402

OUT = Path(__file__).parent / "wire"
PROTO = """syntax = "proto3";
package echo.v1;
message Blob { bytes data = 1; }
service Echo { rpc Call(Blob) returns (Blob); rpc Fail(Blob) returns (Blob); }
"""

GRPCIO = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1], compression=getattr(grpc.Compression, sys.argv[2]))
call = channel.unary_unary("/echo.v1.Echo/Call")
fail = channel.unary_unary("/echo.v1.Echo/Fail")
for size in (0, 10, 300):
    assert call(b"\\x0a" + bytes([size & 127 | 128, size >> 7]) + b"x" * size, timeout=10)
try:
    fail(b"")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
call(b"", metadata=(("x-request-id", "5f2c"), ("x-bin", b"\\x00k")))
channel.close()
"""
GRPCIO_CONCURRENT = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary("/echo.v1.Echo/Call")
for result in [call.future(bytes([65 + n]) * 200, timeout=10) for n in range(6)]:
    result.result()
slow = channel.unary_unary("/echo.v1.Echo/Slow")
try:
    slow(b"cancelled", timeout=0.2)
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
call(b"after")
channel.close()
"""
GRPCLIB = """
import asyncio, sys
from grpclib.client import Channel, UnaryUnaryMethod
class Raw:
    __content_subtype__ = "proto"
    def encode(self, message, kind): return message
    def decode(self, data, kind): return data
async def main():
    host, port = sys.argv[1].split(":")
    channel = Channel(host, int(port), codec=Raw())
    for size in (0, 10, 300):
        await UnaryUnaryMethod(channel, "/echo.v1.Echo/Call", bytes, bytes)(b"y" * size, timeout=10)
    channel.close()
asyncio.run(main())
"""
GRPC_JS = """
const grpc = require('@grpc/grpc-js');
const raw = (value) => value;
const options = process.argv[2] === 'gzip' ? {'grpc.default_compression_algorithm': 2} : {};
const client = new grpc.Client(process.argv[1], grpc.credentials.createInsecure(), options);
const call = (method, data) => new Promise((done) =>
  client.makeUnaryRequest(method, raw, raw, data, (error, value) => done(error || value)));
(async () => {
  for (const size of [1, 10, 300]) await call('/echo.v1.Echo/Call', Buffer.alloc(size, 'z'));
  await call('/echo.v1.Echo/Fail', Buffer.alloc(1));
  client.close();
})();
"""
REQUESTS = """
import sys, requests
session = requests.Session()
url = "http://" + sys.argv[1]
for _ in range(2):
    session.post(url + "/v1/models/half:predict", json={"instances": [1.0, 2.0]}).raise_for_status()
session.post(url + "/chunked", data=(part for part in (b"ab", b"cde"))).raise_for_status()
session.head(url + "/head").raise_for_status()
session.get(url + "/empty").raise_for_status()
session.close()
"""
AIOHTTP = """
import asyncio, sys, aiohttp
async def parts():
    yield b"ab"
    yield b"cde"
async def main():
    url = "http://" + sys.argv[1]
    async with aiohttp.ClientSession() as session:
        async with session.post(url + "/v1/models/half:predict", json={"instances": [1.0]}) as answer:
            await answer.read()
        async with session.post(url + "/chunked", data=parts()) as answer:
            await answer.read()
        async with session.post(url + "/continue", data=b"abc", expect100=True) as answer:
            await answer.read()
asyncio.run(main())
"""
HTTP_CLIENT = """
import sys, http.client
connection = http.client.HTTPConnection(sys.argv[1])
for _ in range(2):
    connection.request("POST", "/api/predict/mnist", body=b"\\x0a\\x00\\x01", headers={"Authorization": "token"})
    connection.getresponse().read()
connection.close()
"""


class Recorder:
    """Relays one or more connections and keeps the first one's bytes in the order seen."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._flows = 0

    async def serve(self, upstream: int) -> asyncio.Server:
        async def flow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._flows += 1
            steps = self.steps if self._flows == 1 else []
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", upstream)

            async def pump(side: Side, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                try:
                    while data := await source.read(65536):
                        steps.append(("data", side, data))
                        sink.write(data)
                        await sink.drain()
                    steps.append(("eof", side))
                    sink.write_eof()
                except (ConnectionError, OSError):
                    sink.transport.abort()

            await asyncio.gather(pump(Side.CLIENT, reader, up_writer), pump(Side.SERVER, up_reader, writer))
            steps.append(("close",))
            up_writer.close()
            writer.close()

        return await asyncio.start_server(flow, "127.0.0.1", 0)


class _Echo(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def call(request: bytes, context: grpc.ServicerContext) -> bytes:
            return request

        def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model: \u00e4")
            raise AssertionError

        def slow(request: bytes, context: grpc.ServicerContext) -> bytes:
            import time

            time.sleep(1)
            return request

        method = {"Call": call, "Fail": fail, "Slow": slow}.get(details.method.rsplit("/", 1)[1])
        return grpc.unary_unary_rpc_method_handler(method) if method else None


@asynccontextmanager
async def grpc_server() -> AsyncIterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[_Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


@asynccontextmanager
async def http_server() -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path == "/empty":
            return web.Response(status=204)
        if request.path == "/chunked":
            stream = web.StreamResponse()
            stream.enable_chunked_encoding()
            await stream.prepare(request)
            await stream.write(body)
            await stream.write(b"!")
            return stream
        return web.json_response({"received": len(body)})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def nghttpd(*options: str) -> AsyncIterator[int]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "file").write_text("hello " * 20)
        Path(folder, "style").write_text("pushed")
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = ["nghttpd", "--no-tls", "-a", "127.0.0.1", "-d", folder, *options, str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)
        yield port
        process.terminate()
        process.wait()


Command = Callable[[str, Path, Path], list[str]]


def _python(source: str, *arguments: str) -> Command:
    return lambda address, tools, work: [sys.executable, "-c", source, address, *arguments]


def _node(source: str, *arguments: str) -> Command:
    return lambda address, tools, work: ["node", "-e", source, "--", address, *arguments]


def _nghttp(*options: str) -> Command:
    """FILE stands for a small file to send."""

    def command(address: str, tools: Path, work: Path) -> list[str]:
        words = [option.replace("FILE", str(work / "echo.proto")) for option in options]
        return ["nghttp", "-n", *words, f"http://{address}/file"]

    return command


def _curl(*options: str) -> Command:
    return lambda address, tools, work: ["curl", "-s", "-o", "/dev/null", *options, f"http://{address}/file"]


def _grpcurl(address: str, tools: Path, work: Path) -> list[str]:
    return [
        str(tools / "grpcurl"), "-plaintext", "-import-path", str(work), "-proto", "echo.proto",
        "-d", '{"data": "aGVsbG8="}', address, "echo.v1.Echo/Call",
    ]  # fmt: skip


def _buf(address: str, tools: Path, work: Path) -> list[str]:
    return [
        str(tools / "node_modules/.bin/buf"), "curl", "--http2-prior-knowledge", "--protocol", "grpc",
        "--schema", str(work / "echo.proto"), "-d", '{"data": "aGVsbG8="}', f"http://{address}/echo.v1.Echo/Call",
    ]  # fmt: skip


_POST = ("-d", "x" * 100)
# name -> (server, client, note)
CASES: dict[str, tuple[Callable[[], object], Command, str]] = {
    "http2/grpcio": (grpc_server, _python(GRPCIO, "NoCompression"), "grpcio: unary, trailers-only error, metadata"),
    "http2/grpcio-gzip": (grpc_server, _python(GRPCIO, "Gzip"), "grpcio, gzip-compressed messages"),
    "http2/grpcio-deflate": (grpc_server, _python(GRPCIO, "Deflate"), "grpcio, deflate-compressed messages"),
    "http2/grpcio-concurrent": (grpc_server, _python(GRPCIO_CONCURRENT), "grpcio: concurrent calls, a deadline: reset"),
    "http2/grpclib": (grpc_server, _python(GRPCLIB), "grpclib: two SETTINGS frames, Huffman"),
    "http2/grpc-js": (grpc_server, _node(GRPC_JS), "grpc-js: :path as literal without indexing"),
    "http2/grpc-js-gzip": (grpc_server, _node(GRPC_JS, "gzip"), "grpc-js, gzip-compressed messages"),
    "http2/grpcurl": (grpc_server, _grpcurl, "grpcurl (grpc-go)"),
    "http2/buf": (grpc_server, _buf, "buf curl (connect-go): END_STREAM on the one DATA frame"),
    "http2/nghttp-padding": (nghttpd, _nghttp("-b", "20"), "nghttp -b 20: padded frames, five PRIORITY frames"),
    "http2/nghttp-post-padding": (nghttpd, _nghttp("-b", "20", "-d", "FILE"), "nghttp -b 20 with a body"),
    "http2/nghttp-continuation": (nghttpd, _nghttp("--continuation"), "nghttp --continuation"),
    "http2/nghttp-table-0": (nghttpd, _nghttp("--encoder-header-table-size=0", "-m", "3"), "A size update to 0"),
    "http2/nghttp-table-64k": (nghttpd, _nghttp("-c", "65536", "-m", "3"), "SETTINGS_HEADER_TABLE_SIZE 65536"),
    "http2/nghttp-table-down": (nghttpd, _nghttp("-c", "65536", "-c", "0", "-m", "2"), "A size update by the server"),
    "http2/nghttp-trailer": (nghttpd, _nghttp("--trailer", "x-sum: 1", "-d", "FILE"), "Request trailers"),
    "http2/nghttpd-trailer": (lambda: nghttpd("--trailer", "x-end: 1", "-b", "9"), _nghttp("-m", "2"), "Their like"),
    "http2/nghttpd-push": (lambda: nghttpd("--push=/file=/style"), _nghttp(), "PUSH_PROMISE"),
    "http2/curl": (nghttpd, _curl("--http2-prior-knowledge", *_POST), "curl --http2-prior-knowledge"),
    "http1/curl": (http_server, _curl("-H", "Expect: 100-continue", *_POST), "curl with 100-continue"),
    "http1/curl-chunked": (http_server, _curl("-H", "Transfer-Encoding: chunked", *_POST), "curl, chunked"),
    "http1/requests": (http_server, _python(REQUESTS), "requests: keep-alive, chunked, HEAD, 204"),
    "http1/aiohttp": (http_server, _python(AIOHTTP), "aiohttp: chunked, 100-continue"),
    "http1/http-client": (http_server, _python(HTTP_CLIENT), "http.client: head and body in two packets"),
}


async def record(name: str, tools: Path, work: Path) -> None:
    server, command, note = CASES[name]
    async with server() as upstream:  # type: ignore[attr-defined]
        recorder = Recorder()
        relay = await recorder.serve(upstream)
        address = f"127.0.0.1:{relay.sockets[0].getsockname()[1]}"
        environment = {**os.environ, "NODE_PATH": str(tools / "node_modules")}
        words = command(address, tools, work)
        if shutil.which(words[0]) is None:
            print(f"{name}: {Path(words[0]).name} is missing, left as it is")
            relay.close()
            return
        process = await asyncio.create_subprocess_exec(*words, env=environment, stdout=subprocess.DEVNULL)
        code = await asyncio.wait_for(process.wait(), 60)
        await asyncio.sleep(0.3)
        relay.close()
        if recorder.steps[-1:] != [("close",)]:
            recorder.steps.append(("close",))
        path = OUT / f"{name.replace('/', '/recorded-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        dump(path, note, recorder.steps, lines_of(recorder.steps))
        size = sum(len(step[2]) for step in recorder.steps if step[0] == "data")
        print(f"{name}: exit {code}, {size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, default=Path("build/wire-tools"))
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "echo.proto").write_text(PROTO)
        for name in options.names or CASES:
            asyncio.run(record(name, options.tools.resolve(), Path(folder)))


if __name__ == "__main__":
    main()
