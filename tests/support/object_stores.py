"""Real servers of object stores, in threads of the test's process: S3 by moto, Google Cloud Storage by
gcp-storage-emulator. Nobody offers one of Alibaba's OSS: what its client sends goes to moto, with the differences that
stand in the way translated (names of headers, the XML's namespace, an object's type), so that what is shown of OSS is
what its client does.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gcp_storage_emulator.server import create_server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

with warnings.catch_warnings():
    # Their sources hold escapes that Python warns of when it compiles them.
    warnings.simplefilter("ignore")
    import ossfs  # noqa: F401

Environ = dict[str, Any]
BUCKET = "models"
#: A bucket that nobody may use.
FORBIDDEN = "forbidden"


class _Oss:
    """In front of moto: OSS's headers as S3's, and lists as oss2 expects them."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith(f"/{FORBIDDEN}"):
            start_response("403 Forbidden", [("Content-Type", "application/xml"), ("x-oss-request-id", "0")])
            body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("OSS "):
            return self._application(environ, start_response)
        # moto takes what stands between slashes in it for the service, and a signature may have any.
        environ["HTTP_AUTHORIZATION"] = "AWS key:signature"
        for name in [name for name in environ if name.startswith("HTTP_X_OSS_")]:
            environ[name.replace("HTTP_X_OSS_", "HTTP_X_AMZ_")] = environ[name]
        answer: list[Any] = []

        def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> None:
            answer[:] = [status, headers, rest]

        body = b"".join(self._application(environ, started))
        status, headers, rest = answer
        if b"<?xml" in body[:100]:
            body = body.replace(b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', b"")
            body = body.replace(b"</Contents>", b"<Type>Normal</Type></Contents>")
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        start_response(status, headers, *rest)
        return [body]


@contextmanager
def s3_and_oss() -> Iterator[str]:
    """The address of a server for both: what is written by one client is there for the other."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = _Oss(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def google() -> Iterator[str]:
    """The address of a server of Google Cloud Storage, with BUCKET."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        yield f"http://127.0.0.1:{server._api._httpd.socket.getsockname()[1]}"
    finally:
        server.stop()
