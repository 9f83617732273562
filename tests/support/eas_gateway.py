"""A stand-in for EAS's own gateway, in front of ``capture host``: it lets only requests through that are signed for
these very bytes, and tells clients of DIRECT mode which instances there are."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.net_http import Echo, echo_server
from tests.support.waiting import PATIENCE

TOKEN = "a-secret-token"
DISCOVERY = "/api/v1/servicediscovery/upstreams/"


class Arrived(NamedTuple):
    """A request as it came in. ``authorized``: ``signed``, ``token`` or why it was turned away."""

    target: str
    host: str
    authorized: str
    body: bytes


class Gateway:
    """``arrived`` are all calls, in order; ``asked`` the services that were looked up."""

    def __init__(self, url: str = "") -> None:
        """``url``: a custom URL, of which the raw token is asked."""
        self.url = url
        self.address = ""
        self.arrived: list[Arrived] = []
        self.asked: list[str] = []
        #: ``host:port`` that a client of DIRECT mode is told.
        self.instance = ""

    def authorized(self, target: str, headers: dict[str, str], body: bytes) -> str:
        """By the letter of the SDK's signature (eas_prediction predict_client.py), each part as it came in."""
        given = headers.get("authorization", "")
        if self.url and target == self.url:
            return "token" if given == TOKEN else "another token"
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        if headers.get("content-md5") != digest:
            return "another body"
        signed = "\n".join(["POST", digest, headers["content-type"], headers["date"], target])
        expected = base64.b64encode(hmac.new(TOKEN.encode(), signed.encode(), hashlib.sha1).digest()).decode()
        return "signed" if given == f"EAS {expected}" else "another signature"


@contextlib.contextmanager
def gateway(behind: str, *, url: str = "", service: str = "") -> Iterator[Gateway]:
    """In front of the EAS port ``behind``; ``url`` is passed on to ``service``."""
    made = Gateway(url)

    class Handler(Echo):
        def do_GET(self) -> None:
            made.asked.append(self.path.removeprefix(DISCOVERY))
            host, _, port = made.instance.rpartition(":")
            items = [{"ip": host, "port": int(port), "weight": 100}]
            self._answer(200, json.dumps({"endpoints": {"items": items}}).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            verdict = made.authorized(self.path, headers, body)
            made.arrived.append(Arrived(self.path, headers["host"], verdict, body))
            if verdict not in ("signed", "token"):
                self._answer(401, verdict.encode())
                return
            target = f"/api/predict/{service}" if self.path == url else self.path
            onward = http.client.HTTPConnection(behind, timeout=PATIENCE)
            with contextlib.closing(onward):
                onward.request("POST", target, body)
                answer = onward.getresponse()
                self._answer(answer.status, answer.read())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with echo_server(Handler) as address:
        made.address = made.instance = address
        yield made
