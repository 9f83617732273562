"""The connection to a Redis or Valkey server: made when it is needed, every call in time, every error one line."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha1
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import msgspec
import redis
from redis import exceptions as failures
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from capture.store.base import StoreError
from capture.store.redis_url import RedisUrl, must_be_safe

#: Where the password is looked for when the URL has none: the variable that redis-cli reads, and a file's name.
PASSWORD_VARIABLE: Final = "REDISCLI_AUTH"  # noqa: S105 - the name of it
PASSWORD_FILE_VARIABLE: Final = "WARMTAP_STORE_PASSWORD_FILE"  # noqa: S105
#: Attempts of a cluster's client: after a failover it must first learn who is the primary now.
CLUSTER_ATTEMPTS: Final = 3
#: Seconds that the clocks of a writer and of the server may differ, and between two looks at them.
CLOCK_SECONDS: Final = 300.0
CLOCK_INTERVAL: Final = 600.0

#: What errors of the server mean, by the word that they begin with.
_MEANING: Final = {
    "OOM": "its memory is full (maxmemory): give it more, or lower capture.limits.store_bytes; what is stored stays",
    "READONLY": "it is a replica, perhaps since a failover: name the primary",
    "LOADING": "it is loading its data; try again in a moment",
    "NOAUTH": f"it asks for a password: put it into {PASSWORD_VARIABLE}, {PASSWORD_FILE_VARIABLE} or the URL",
    "WRONGPASS": "wrong user or password",
    "NOPERM": "this user may not do that: allow it all commands on its keys (ACL: ~PREFIX:* +@all)",
    "MOVED": "it is part of a cluster: write redis+cluster://",
    "ASK": "the cluster is moving keys; try again in a moment",
    "TRYAGAIN": "the cluster is moving keys; try again in a moment",
    "CLUSTERDOWN": "the cluster is down: some of its slots have no node",
    "CROSSSLOT": "keys of one call lie on several nodes: is it behind a proxy that is no cluster?",
    "MISCONF": "it cannot save to its disk and takes no writes: see its log",
    "MASTERDOWN": "it is a replica without its primary",
    "NOREPLICAS": "it has fewer replicas than it wants for a write (min-replicas-to-write)",
    "BUSY": "a script of another client runs for long; try again in a moment",
}
#: The same for errors that the client makes of their own class.
_WORDS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (failures.OutOfMemoryError, "OOM"),
    (failures.ReadOnlyError, "READONLY"),
    (failures.BusyLoadingError, "LOADING"),
    (failures.NoPermissionError, "NOPERM"),
    (failures.MovedError, "MOVED"),
    (failures.AskError, "ASK"),
    (failures.TryAgainError, "TRYAGAIN"),
    (failures.ClusterDownError, "CLUSTERDOWN"),
    (failures.MasterDownError, "MASTERDOWN"),
)


def script(name: str, *, shared: bool = True) -> str:
    """The text of a script; ``shared``: after what several of them use."""
    place = files("capture.store") / "lua"
    return (place / "common.lua").read_text() * shared + (place / f"{name}.lua").read_text()


class Link:
    """One server or cluster. One instance belongs to one thread at a time."""

    def __init__(self, url: RedisUrl) -> None:
        """Connects to nothing yet. Raises StoreError: plaintext to another machine, a file that cannot be read."""
        self.url = url if url.password else replace(url, password=_password(url))
        must_be_safe(url, tuple(host for host, _ in url.hosts))
        for name in ("ca", "cert", "key"):
            _must_be_readable(url, name)
        self._client: Any = None
        self._scripts: dict[str, tuple[str, str]] = {}
        self._clock_until = float("-inf")

    @property
    def client(self) -> Any:
        """The connected client. Only inside :meth:`errors`."""
        if self._client is None:
            self._client = _cluster(self.url) if self.url.cluster else _single(self.url)
            if self.url.cluster:
                # What a cluster says of itself may lead elsewhere.
                try:
                    must_be_safe(self.url, tuple(node.host for node in self._client.get_nodes()))
                except StoreError:
                    self.close()
                    raise
        return self._client

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Whatever goes wrong inside is a StoreError."""
        try:
            yield
        except (failures.RedisError, failures.RedisClusterException, OSError, msgspec.MsgspecError) as error:
            raise StoreError(f"store {self.url.shown}: {explained(error, self.url)}") from None

    def check(self, key: str) -> list[str]:
        """Raise StoreError where this machine's clock is not the server's: what is kept is kept by age, and one sidecar
        that is years ahead would throw away what all have captured. Asked now and then, where ``key`` lies; what to
        warn of."""
        if (now := time.monotonic()) < self._clock_until:
            return []
        seconds, _ = self.client.eval("return redis.call('TIME')", 1, key)
        if abs(ahead := time.time() - int(seconds)) > CLOCK_SECONDS:
            raise StoreError(
                f"store {self.url.shown}: the clocks of this machine and of the server differ by {abs(ahead):.0f} s,"
                f" more than {CLOCK_SECONDS:.0f}: set them; nothing is written meanwhile"
            )
        self._clock_until = now + CLOCK_INTERVAL
        return self._policy(key)

    def _policy(self, key: str) -> list[str]:
        """A server that makes room by itself deletes what was captured."""
        try:
            found = self.client.eval("return redis.call('INFO', 'memory')", 1, key)
        except failures.ResponseError:
            return []  # not everybody may ask, and not of a script
        said = dict(line.split(":", 1) for line in found.decode().split() if ":" in line)
        policy = said.get("maxmemory_policy", "")
        if said.get("maxmemory", "0") == "0" or not policy.startswith("allkeys"):
            return []
        return [f"maxmemory-policy {policy} deletes what was captured once memory is full: set noeviction"]

    def run(self, name: str, key: str, message: Any, *blobs: bytes) -> Any:
        """Run a script on the slot of ``key``; what it packed, or its number."""
        if name not in self._scripts:
            text = script(name, shared=name not in ("metadata", "lock"))
            if name in ("metadata", "lock"):
                text = "local base, call = KEYS[1], redis.call\nlocal message = cmsgpack.unpack(ARGV[1])\n" + text
            self._scripts[name] = text, sha1(text.encode(), usedforsecurity=False).hexdigest()
        text, digest = self._scripts[name]
        # A script names one key and finds the others: on a slot that is half moved to another node it would miss some,
        # stop in the middle or begin them anew. A second key that never exists makes a cluster answer TRYAGAIN there.
        keys = (key, f"{key}:none") if self.url.cluster else (key,)
        arguments = (len(keys), *keys, msgspec.msgpack.encode(message), *blobs)
        try:
            answer = self.client.evalsha(digest, *arguments)
        except failures.NoScriptError:
            answer = self.client.eval(text, *arguments)
        return msgspec.msgpack.decode(answer) if isinstance(answer, bytes) else answer

    def each(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Several commands in one go, not as one transaction; their answers."""
        with self.client.pipeline(**({} if self.url.cluster else {"transaction": False})) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return list(pipe.execute())

    def close(self) -> None:
        """Give the connection back."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _password(url: RedisUrl) -> str:
    if found := os.environ.get(PASSWORD_VARIABLE, ""):
        return found
    name = os.environ.get(PASSWORD_FILE_VARIABLE, "")
    if not name:
        return ""
    try:
        return Path(name).read_text().strip("\r\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no text"
        raise StoreError(f"store {url.shown}: {PASSWORD_FILE_VARIABLE}={name}: {why}") from None


def _must_be_readable(url: RedisUrl, name: str) -> None:
    if file := getattr(url, name):
        try:
            os.close(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise StoreError(f"store {url.shown}: {name}={file}: {error.strerror}") from None


def _common(url: RedisUrl) -> dict[str, Any]:
    options: dict[str, Any] = {
        "username": url.username or None,
        "password": url.password or None,
        "socket_timeout": url.timeout,
        "socket_connect_timeout": url.timeout,
        "client_name": "warmtap",
        "protocol": 2,
    }
    if url.tls:
        options |= {
            "ssl": True,
            "ssl_ca_certs": url.ca or None,
            "ssl_certfile": url.cert or None,
            "ssl_keyfile": url.key or None,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        }
    return options


def _single(url: RedisUrl) -> Any:
    # Whoever writes tries again by itself, with everything that came in between.
    options = _common(url) | {"db": url.db, "retry": Retry(NoBackoff(), 0)}
    if url.path:
        return redis.Redis(unix_socket_path=url.path, **options)
    ((host, port),) = url.hosts
    return redis.Redis(host=host, port=port, socket_keepalive=True, **options)


def _cluster(url: RedisUrl) -> Any:
    nodes: list[Any] = [ClusterNode(host, port) for host, port in url.hosts]  # type: ignore[no-untyped-call]
    return redis.RedisCluster(
        startup_nodes=nodes,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), CLUSTER_ATTEMPTS),
        **_common(url),
    )


def explained(error: Exception, url: RedisUrl) -> str:
    """One line: what happened, and the remedy where there is one. Never the password."""
    text = " ".join(str(error).split()) or type(error).__name__
    word = next((word for kind, word in _WORDS if isinstance(error, kind)), text.partition(" ")[0])
    if word == "-ERR" or word == "ERR":
        text = text.partition(" ")[2]
    if "without any password" in text or "no password is set" in text:
        return f"it asks for no password: leave it out of the URL, {PASSWORD_VARIABLE} and {PASSWORD_FILE_VARIABLE}"
    if isinstance(error, failures.AuthenticationError):
        word = "NOAUTH" if "NOAUTH" in text or "required" in text.lower() else "WRONGPASS"
    if text.startswith("TTL exhausted"):
        word = "TRYAGAIN"  # what a cluster's client says when that was the answer to all its attempts
    if word in _MEANING:
        return f"{word}: {_MEANING[word]}"
    if isinstance(error, failures.TimeoutError | TimeoutError):
        return f"no answer within {url.timeout:g} s; is it stopped, or behind a firewall?"
    if "cluster support disabled" in text or "Cluster mode is not enabled" in text:
        return "it is no cluster; write redis:// or rediss://"
    if isinstance(error, msgspec.MsgspecError):
        return f"what lies at {url.prefix}: is not warmtap's ({text}); take another prefix: ?prefix=NAME"
    if "WRONGTYPE" in text:
        return f"keys {url.prefix}:... are another program's; take another prefix: ?prefix=NAME"
    return text if not url.password else text.replace(url.password, "***")
