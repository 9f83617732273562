"""Who is measured, and the model server behind them all.

Each contender listens for HTTP/1.1, and for gRPC and for HTTP/1.1 over TLS where it speaks that, and forwards to the
origin, which speaks no TLS.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from capture.counters import LOSSES, Counters
from tests.bench import cpu
from tests.support.certificates import Issued
from tests.support.net_sidecar import Sidecar, wait_gone
from tests.support.ports import free_port
from tests.support.waiting import until

_NGINX = """
worker_processes 1;
pid {scratch}/{name}.pid;
error_log {scratch}/{name}.log warn;
{user}
events {{ worker_connections 8192; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  keepalive_timeout 3600;
  http2_max_concurrent_streams 1024;
  client_max_body_size 0;
  # Nothing is spooled to a disk: larger than the body.
  client_body_buffer_size 64k;
  client_body_temp_path {scratch}/{name}-body;
  proxy_temp_path {scratch}/{name}-proxy;
  fastcgi_temp_path {scratch}/{name}-fastcgi;
  uwsgi_temp_path {scratch}/{name}-uwsgi;
  scgi_temp_path {scratch}/{name}-scgi;
  default_type application/octet-stream;
{body}
}}
"""
# The outer servers read a request whole before they ask the inner one: a model server does not answer half a request.
_ORIGIN = """
  upstream inner {{ server unix:{scratch}/inner.sock; keepalive 256; keepalive_requests 1000000000; }}
  server {{ listen unix:{scratch}/inner.sock; root {scratch}/answers;
    error_page 405 =200 $uri; location / {{ try_files /$http_x_answer =404; }} }}
  server {{ listen 127.0.0.1:{http} backlog=4096;
    location / {{ proxy_pass http://inner; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Answer http; }} }}
  server {{ listen 127.0.0.1:{grpc} http2 backlog=4096;
    location / {{ proxy_pass http://inner; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Answer grpc; proxy_hide_header Content-Type; add_header Content-Type application/grpc;
      add_trailer grpc-status 0; }} }}
"""
_PROXY_PASS = """
  upstream http_origin {{ server 127.0.0.1:{http}; keepalive 256; keepalive_requests 1000000000; }}
  upstream grpc_origin {{ server 127.0.0.1:{grpc}; keepalive 256; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{listen_http} backlog=4096;
    location / {{ proxy_pass http://http_origin; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
  server {{ listen 127.0.0.1:{listen_grpc} http2 backlog=4096;
    location / {{ grpc_pass grpc://grpc_origin; }} }}
  server {{ listen 127.0.0.1:{listen_https} ssl backlog=4096;
    ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
    location / {{ proxy_pass http://http_origin; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
"""
#: Seconds for a process to answer and to end.
PATIENCE = 30.0


class Ports(NamedTuple):
    """Where to send HTTP/1.1, gRPC, and HTTP/1.1 over TLS; 0 where the contender does not speak it."""

    http: int
    grpc: int
    https: int = 0


class Contender:
    """One of those that are measured, running."""

    def __init__(self, name: str, ports: Ports, pids: list[int]) -> None:
        self.name = name
        self.ports = ports
        self.pids = pids

    def parts(self) -> dict[str, float]:
        """CPU seconds so far, by part."""
        return {"all": cpu.seconds(self.pids)}

    def begin(self) -> None:
        """A round begins."""

    def faults(self, completed: int, in_flight: int) -> str:
        """Why the round does not count; empty if it does."""
        return ""


class Warmtap(Contender):
    """The sidecar. Without capture its tap is detached by the kill switch, and the relay is alone."""

    def __init__(self, name: str, sidecar: Sidecar, *, captures: bool) -> None:
        super().__init__(name, Ports(*sidecar.ready()), [])
        self._captures = captures
        self._relay, self._worker = sidecar.pid("relay"), sidecar.pid("worker")
        self._counters: Counters = sidecar.counters()
        self._before: dict[str, int] = {}
        if not captures:
            until(lambda: self._gauge("tap_attached") == 1, "tap attached")
            os.kill(sidecar.process.pid, signal.SIGUSR1)
            until(lambda: self._gauge("tap_attached") == 0, "tap detached")
            wait_gone(self._worker)
        self.pids = cpu.family(sidecar.process.pid)

    def _gauge(self, name: str) -> int:
        return self._counters.total()[name]

    def parts(self) -> dict[str, float]:
        found = {"all": cpu.seconds(self.pids), "relay": cpu.seconds([self._relay])}
        return found | ({"worker": cpu.seconds([self._worker])} if self._captures else {})

    def begin(self) -> None:
        self._before = self._counters.snapshot()

    def _since(self, name: str) -> int:
        return self._counters.snapshot()[name] - self._before[name]

    def faults(self, completed: int, in_flight: int) -> str:
        if not self._captures:
            seen = self._since("requests_observed")
            return f"{seen} requests were captured, the relay was not alone" if seen else ""
        with contextlib.suppress(AssertionError):
            until(lambda: self._since("requests_proven") >= completed, "everything hashed")
        proven = self._since("requests_proven")
        if not completed <= proven <= completed + in_flight:
            return f"{proven} requests were hashed of {completed}"
        lost = {name: n for name in LOSSES if (n := self._since(name))}
        return f"lost: {lost}" if lost else ""


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        return True
    return False


def _wait(process: subprocess.Popen[bytes], ports: Ports) -> None:
    until(
        lambda: process.poll() is not None or all(_answers(port) for port in ports if port),
        f"{process.args!r} listens",
    )
    if process.poll() is not None:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")


@contextlib.contextmanager
def _running(command: list[str], ports: Ports) -> Iterator[list[int]]:
    process = subprocess.Popen(command)
    try:
        _wait(process, ports)
        yield cpu.family(process.pid)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def _nginx(name: str, scratch: Path, body: str, ports: Ports) -> Iterator[list[int]]:
    # As root its workers would be another user, who cannot enter the directory.
    user = "user root;" if os.geteuid() == 0 else ""
    path = scratch / f"{name}.conf"
    path.write_text(_NGINX.format(scratch=scratch, name=name, user=user, body=body))
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") or "nginx"
    with _running([program, "-p", str(scratch), "-c", str(path), "-g", "daemon off;"], ports) as pids:
        # The kernel accepts as soon as the master listens; who is to be measured is its worker.
        until(lambda: len(cpu.family(pids[0])) > 1, "a worker of nginx")
        yield cpu.family(pids[0])


@contextlib.contextmanager
def origin(scratch: Path, http_answer: bytes, grpc_answer: bytes, core: int) -> Iterator[Ports]:
    """A server that reads each request whole and answers with success."""
    ports = Ports(free_port(), free_port())
    answers = scratch / "answers"
    answers.mkdir()
    (answers / "http").write_bytes(http_answer)
    (answers / "grpc").write_bytes(grpc_answer)
    with _nginx("origin", scratch, _ORIGIN.format(scratch=scratch, **ports._asdict()), ports) as pids:
        cpu.pin(pids, core)
        yield ports


@contextlib.contextmanager
def nginx(scratch: Path, to: Ports, own: Issued) -> Iterator[Contender]:
    """``proxy_pass`` and ``grpc_pass``, connections kept."""
    ports = Ports(free_port(), free_port(), free_port())
    listen = {f"listen_{name}": port for name, port in ports._asdict().items()}
    body = _PROXY_PASS.format(**to._asdict(), **listen, **own._asdict())
    with _nginx("nginx", scratch, body, ports) as pids:
        yield Contender("nginx", ports, pids)


@contextlib.contextmanager
def aiohttp_proxy(to: Ports) -> Iterator[Contender]:
    """A proxy written by hand; it speaks no HTTP/2."""
    ports = Ports(free_port(), 0)
    command = [sys.executable, "-m", "tests.bench.aiohttp_proxy", str(ports.http), str(to.http)]
    with _running(command, ports) as pids:
        yield Contender("aiohttp", ports, pids)


@contextlib.contextmanager
def warmtap(scratch: Path, to: Ports, own: Issued, *, captures: bool) -> Iterator[Contender]:
    """The sidecar as people run it."""
    name = "relay + worker" if captures else "relay alone"
    home = scratch / name.replace(" ", "-")
    home.mkdir(mode=0o700)
    http, grpc = ({"listen": "127.0.0.1:0", "upstream": f"127.0.0.1:{port}"} for port in (to.http, to.grpc))
    settings = {"listeners": [http, grpc, {**http, "tls": own._asdict()}]}
    (home / "settings.yaml").write_bytes(msgspec.yaml.encode(settings))
    with Sidecar("--config", "settings.yaml", cwd=home) as sidecar:
        yield Warmtap(name, sidecar, captures=captures)
