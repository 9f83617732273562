"""What a store's URL says where it is a Redis or Valkey server, and what may be shown of it. Pure."""

from __future__ import annotations

import difflib
import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from capture.store.base import StoreError, shown_store

#: Scheme, by whether it is a cluster and whether it is encrypted.
SCHEMES: Final = {
    "redis": (False, False),
    "rediss": (False, True),
    "redis+cluster": (True, False),
    "rediss+cluster": (True, True),
    "unix": (False, False),
}
DEFAULT_PORT: Final = 6379
#: Seconds that a call may take; a server that was stopped answers nothing and closes nothing.
DEFAULT_TIMEOUT: Final = 5.0
#: What keys begin with, so that several fleets may share a server.
DEFAULT_PREFIX: Final = "warmtap"
_OPTIONS: Final = ("prefix", "timeout", "db", "ca", "cert", "key", "plaintext")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where the store is. ``shown`` is the URL without its password; ``path`` a Unix socket, then there are no
    ``hosts``. ``ca``, ``cert`` and ``key`` are files for TLS, empty for the system's authorities and no certificate."""

    shown: str
    hosts: tuple[tuple[str, int], ...]
    path: str = ""
    cluster: bool = False
    tls: bool = False
    username: str = ""
    password: str = ""
    db: int = 0
    prefix: str = DEFAULT_PREFIX
    timeout: float = DEFAULT_TIMEOUT
    ca: str = ""
    cert: str = ""
    key: str = ""
    #: Requests may go to another machine unencrypted.
    plaintext: bool = False


def parse(url: str) -> RedisUrl:
    """Read a URL. Raises StoreError, one line that names what is wrong and never the password."""
    shown = shown_store(url)
    scheme, _, rest = url.partition("://")
    cluster, tls = SCHEMES[scheme]
    before, at, _ = rest.rpartition("@")
    if at and set(before) & set("/?#"):
        raise StoreError(f"store {shown}: in a password write / as %2F, ? as %3F, # as %23")
    # What is between has a grammar of its own where several hosts are named.
    try:
        split = urlsplit("//" + rest)
    except ValueError:
        # Its own words may hold the password.
        raise StoreError(
            f"store {shown}: no address; [ and ] are for IPv6 only, and what is no letter or digit in a user or"
            " password is written as % and two digits"
        ) from None
    userinfo, _, hostinfo = split.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    options = _options(shown, split.query, tls)
    if "#" in rest:
        raise StoreError(f"store {shown}: '#' has no meaning here; leave it out")
    db_text = options.get("db", "0")
    hosts: tuple[tuple[str, int], ...] = ()
    path = ""
    if scheme == "unix":
        path = unquote(split.path)
        if hostinfo or not path.startswith("/"):
            raise StoreError(f"store {shown}: write unix:///path/of/the/socket")
    else:
        hosts = tuple(_host(shown, text) for text in hostinfo.split(","))
        if len(hosts) > 1 and not cluster:
            raise StoreError(f"store {shown}: several hosts are a cluster; write {scheme}+cluster://")
        inner = split.path.strip("/")
        if inner and "db" in options:
            raise StoreError(f"store {shown}: the database is named twice")
        db_text = inner or db_text
    if not (db_text.isascii() and db_text.isdigit()):
        raise StoreError(f"store {shown}: {db_text!r} is no database; write {scheme}://HOST:PORT/0")
    if cluster and int(db_text):
        raise StoreError(f"store {shown}: a cluster has database 0 only; take a prefix instead: ?prefix=NAME")
    return RedisUrl(
        shown,
        hosts,
        path,
        cluster,
        tls,
        unquote(username),
        unquote(password),
        int(db_text),
        _prefix(shown, options.get("prefix", DEFAULT_PREFIX)),
        _timeout(shown, options.get("timeout")),
        options.get("ca", ""),
        options.get("cert", ""),
        options.get("key", ""),
        "plaintext" in options,
    )


def without_password(url: str) -> tuple[str, str]:
    """The URL without its password, and the password. Raises StoreError."""
    parsed = parse(url)
    scheme, _, rest = url.partition("://")
    userinfo, at, place = rest.rpartition("@")
    user = userinfo.partition(":")[0]
    return f"{scheme}://{user}{at if user else ''}{place}", parsed.password


def _options(shown: str, query: str, tls: bool) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, _ in pairs:
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_OPTIONS)}"
            raise StoreError(f"store {shown}: unknown option {name!r}; {hint}")
        if name in ("ca", "cert", "key") and not tls:
            raise StoreError(f"store {shown}: {name} is for TLS; write rediss:// or rediss+cluster://")
    options = dict(pairs)
    if options.get("plaintext", "allow") != "allow":
        raise StoreError(f"store {shown}: plaintext={options['plaintext']}: write plaintext=allow, or leave it out")
    if len(options) != len(pairs):
        raise StoreError(f"store {shown}: an option is given twice")
    if ("cert" in options) != ("key" in options):
        raise StoreError(f"store {shown}: cert and key go together")
    return options


def _host(shown: str, text: str) -> tuple[str, int]:
    try:
        split = urlsplit("//" + text)
        host, port = split.hostname, split.port
    except ValueError as error:
        raise StoreError(f"store {shown}: {error}") from None
    if not host:
        raise StoreError(f"store {shown}: no host; write redis://HOST:PORT")
    return host, DEFAULT_PORT if port is None else port


def _prefix(shown: str, text: str) -> str:
    if not text or not text.isprintable() or not text.isascii() or set(text) & set("{} "):
        raise StoreError(f"store {shown}: prefix {text!r}: take letters, digits and -:._")
    return text


def _timeout(shown: str, text: str | None) -> float:
    if text is None:
        return DEFAULT_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 60:
        raise StoreError(f"store {shown}: timeout {text!r}: give seconds, 0.05 to 60")
    return seconds


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine. A name other than localhost may be anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def must_be_safe(url: RedisUrl, hosts: tuple[str, ...]) -> None:
    """Raise StoreError where requests would be sent in plaintext to another machine and nobody allowed it."""
    if url.tls or url.plaintext:
        return
    for host in hosts:
        if not is_loopback(host):
            raise StoreError(
                f"store {url.shown}: requests would be sent to {host} unencrypted; write"
                f" rediss{'+cluster' if url.cluster else ''}://, or allow it with ?plaintext=allow"
            )
