"""URLs of places: ``file:///dir``, ``s3://bucket/path``, ``oss://bucket/path``, ``gs://bucket/path``.

Pure. Credentials never stand in a URL: it goes into manifests, histories and error texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from capture.errors import UserError

#: Scheme -> the extra of warmtap that brings its client.
SCHEMES: Final = {"file": "", "s3": "s3", "oss": "oss", "gs": "gs"}
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: OSS buckets are also written with their endpoint: oss://bucket.oss-cn-hangzhou.aliyuncs.com/path.
_OSS_HOST: Final = re.compile(r"([^.]+)\.(oss-[a-z0-9-]+\.aliyuncs\.com)")


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, taken apart. ``path`` has no slash at its ends, but of ``file`` the one at its begin. ``endpoint`` is the
    store's host where an OSS URL names it, "" otherwise."""

    scheme: str
    bucket: str
    path: str
    endpoint: str = ""

    def __str__(self) -> str:
        host = f"{self.bucket}.{self.endpoint}" if self.endpoint else self.bucket
        return f"{self.scheme}://{host}" + ("" if not self.path else "/" + self.path.removeprefix("/"))

    def below(self, path: str) -> Address:
        """The place below this one. ``path`` is relative."""
        joined = f"{self.path}/{path}" if self.path else path
        return Address(self.scheme, self.bucket, joined, self.endpoint)


def is_url(text: str) -> bool:
    """Whether this is a URL and no path."""
    return _URL.match(text) is not None


def parse(text: str) -> Address:
    """Take a URL apart. Raises UserError, which does not repeat what may be a credential."""
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES or not is_url(text):
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(f"{scheme}://...: no such kind of place; one of: {known}")
    host = rest.partition("/")[0]
    if "@" in host:
        raise UserError(
            f"{scheme}://...@{host.rpartition('@')[2]}: credentials do not belong into a URL; give them in the"
            " environment (docs/publish.md)"
        )
    if "?" in text or "#" in text:
        raise UserError(f"{scheme}://{host}/...: a URL with ? or # names no place; leave it out")
    if scheme == "file":
        path = urlsplit(text).path
        if host not in ("", "localhost") or not path.startswith("/"):
            raise UserError(f"{text}: a file URL names an absolute path: file:///models")
        return Address("file", "", path.rstrip("/") or "/")
    if not host:
        raise UserError(f"{text}: no bucket in it; say {scheme}://BUCKET/PATH")
    path = rest.partition("/")[2].strip("/")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise UserError(f"{text}: an empty step, . or .. in a path of a bucket names nothing")
    if scheme == "oss" and (match := _OSS_HOST.fullmatch(host)):
        return Address("oss", match[1], path, match[2])
    return Address(scheme, host, path)
