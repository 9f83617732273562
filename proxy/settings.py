"""The one table of settings: what a settings file may say, with defaults, units and help.

An unknown key is an error that names the nearest known one; a bad value names its place and the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from capture.config import LOWEST_MEMORY_BYTES, ListenerConfig
from capture.dialects.table import BY_NAME, EAS
from capture.export.scrub_rules import check_rules
from capture.levels import Levels
from capture.settings_errors import SettingsError, convert, read_yaml
from proxy import address
from proxy.deadlines import Deadlines, KeepAlive
from proxy.settings_capture import Capture, Seconds
from proxy.settings_tls import ListenTls, UpstreamTls

LogLevel = Literal["debug", "info", "warning", "error"]
ListenerMode = Literal["relay", "sink"]
#: The kernel takes TCP_USER_TIMEOUT as milliseconds in an int.
LONGEST_USER_TIMEOUT: Final = 2_147_483.0
DEFAULT_ADMIN = "127.0.0.1:8590"


class Listener(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One address to listen on and the model server behind it, or what a mirror is pointed at (``mode: sink``)."""

    listen: Annotated[
        str,
        Meta(description="host:port or unix:/path to accept clients on; :port is loopback only, port 0 any free port"),
    ]
    upstream: Annotated[
        str, Meta(description="host:port or unix:/path of the model server; needed, but for mode sink")
    ] = ""
    mode: Annotated[
        ListenerMode,
        Meta(
            description="relay: stand in front of upstream; sink: answer 200 to copies that a mirror sends and "
            "capture them as unproven, with no upstream"
        ),
    ] = "relay"
    name: Annotated[str, Meta(description="shown in reports; the listen address if empty")] = ""
    dialect: Annotated[str, Meta(description="how the traffic is read: auto (by path) or the name of a dialect")] = (
        "auto"
    )
    service: Annotated[str, Meta(description="EAS service name, where the path does not tell it")] = ""
    services: Annotated[
        dict[str, str],
        Meta(description="EAS services that speak another dialect than the listener, by name: `{rank: eas-pytorch}`"),
    ] = {}
    version: Annotated[str, Meta(description="model version, where neither request nor response tells it (EAS)")] = ""
    status: Annotated[
        str,
        Meta(
            description="REST address of that TF Serving, http://host:port: it is asked which versions it serves, for "
            "calls that do not tell, and for their SignatureDefs; empty: it is not asked"
        ),
    ] = ""
    tls: Annotated[ListenTls | None, Meta(description="TLS towards clients; none: plaintext")] = None
    upstream_tls: Annotated[UpstreamTls | None, Meta(description="TLS towards the model server; none: plaintext")] = (
        None
    )
    socket_mode: Annotated[
        str, Meta(pattern="^0?[0-7]{3}$", description="permissions of a Unix listener, in octal digits")
    ] = "0600"
    follow_upstream: Annotated[
        bool, Meta(description="refuse clients while the model server refuses: the listener closes until it accepts")
    ] = False


class Relay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data path. Every deadline ends in a reset of both sides, counted as flows_closed_<reason>; 0 is never."""

    connect_timeout: Annotated[Seconds, Meta(description="seconds from accept until the model server has accepted")] = (
        Deadlines().connect
    )
    first_byte_timeout: Annotated[
        Seconds,
        Meta(
            description="seconds from the client's first byte to the server's, noticed after once to twice the time; "
            "off by default, since a cold graph build may take minutes"
        ),
    ] = Deadlines().first_byte
    half_closed_timeout: Annotated[Seconds, Meta(description="seconds without a byte after one side has ended")] = (
        Deadlines().half_closed
    )
    closing_timeout: Annotated[
        Seconds, Meta(description="seconds without progress after both sides have ended and data is unsent")
    ] = Deadlines().closing
    keepalive_idle: Annotated[
        int, Meta(ge=0, le=32767, description="seconds of silence before TCP probes a peer; 0 leaves the kernel's")
    ] = KeepAlive().idle
    keepalive_interval: Annotated[
        int, Meta(ge=1, le=32767, description="seconds between probes; five unanswered end the connection")
    ] = KeepAlive().interval
    tcp_user_timeout: Annotated[
        float,
        Meta(
            ge=0,
            le=LONGEST_USER_TIMEOUT,
            description="seconds that sent data may stay unacknowledged, or a peer refuse to read",
        ),
    ] = KeepAlive().user_timeout
    max_connections: Annotated[
        int, Meta(ge=0, description="clients at once, over all listeners; 0 is what the descriptor limit allows")
    ] = 0
    resolve_interval: Annotated[
        Seconds, Meta(description="seconds after which an upstream name is looked up again")
    ] = 30.0
    tls_handshake_timeout: Annotated[Seconds, Meta(description="seconds for a client's TLS handshake")] = (
        Deadlines().tls_handshake
    )
    idle_timeout: Annotated[
        Seconds,
        Meta(
            description="seconds without a byte in either direction; off by default, since a silent connection may "
            "wait for a graph build"
        ),
    ] = Deadlines().idle
    drain_delay: Annotated[
        Seconds, Meta(description="seconds after SIGTERM in which clients are still accepted, while not ready")
    ] = 5.0
    drain_quiet: Annotated[
        Seconds,
        Meta(description="seconds of quiet after the server's last byte, after which a connection is closed as idle"),
    ] = 1.0
    shutdown_timeout: Annotated[
        Seconds, Meta(description="seconds that connections may go on after the last accept before they are reset")
    ] = 10.0
    heartbeat_timeout: Annotated[
        Seconds, Meta(description="seconds without a sign of life after which a stuck relay is killed and replaced")
    ] = 10.0


class Tap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may wait between the relay and the capture worker. Beyond it capture loses, never the client."""

    buffer_bytes: Annotated[
        int, Meta(ge=1 << 20, description="bytes, held in the relay; as many as capture.limits.request_bytes")
    ] = 64 << 20
    buffer_frames: Annotated[int, Meta(ge=1024, description="frames (one per chunk read)")] = 16384


class Sink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What answers mirrored traffic. A body over capture.limits.request_bytes is answered with 413."""

    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=65536,
            description="mirrored connections at once, over all listeners of mode sink; for one more, the one that "
            "was answered least recently is closed",
        ),
    ] = 1024
    request_timeout: Annotated[
        Seconds,
        Meta(description="seconds without a finished request, once one has begun, after which its connection is reset"),
    ] = 60.0


class Admin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Health, metrics and API."""

    listen: Annotated[
        str, Meta(description="host:port for health, metrics and API; beyond loopback a token is needed; empty: off")
    ] = DEFAULT_ADMIN
    token_file: Annotated[
        str, Meta(description="path of a file with the token that all but /healthz and /readyz ask for; empty: none")
    ] = ""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A settings file."""

    listeners: Annotated[tuple[Listener, ...], Meta(min_length=1, description="addresses and their model servers")]
    relay: Annotated[Relay, Meta(description="the data path")] = Relay()
    tap: Annotated[Tap, Meta(description="between the relay and the capture worker")] = Tap()
    sink: Annotated[Sink, Meta(description="what answers mirrored traffic, for listeners of mode sink")] = Sink()
    capture: Annotated[Capture, Meta(description="what is kept")] = Capture()
    admin: Annotated[Admin, Meta(description="health, metrics and API")] = Admin()
    workers: Annotated[
        int, Meta(ge=1, le=64, description="pairs of relay and capture worker; connections are shared among them")
    ] = 1
    takeover_socket: Annotated[
        str,
        Meta(
            description="path of a Unix socket through which `capture proxy --take-over` receives the listeners of "
            "this one; empty: off"
        ),
    ] = ""
    log_level: Annotated[LogLevel, Meta(description="debug, info, warning or error")] = "info"

    def listener_configs(self) -> tuple[ListenerConfig, ...]:
        """The listeners as the capture worker wants them."""
        return tuple(
            ListenerConfig(
                listener.name or listener.listen,
                listener.dialect,
                listener.service,
                listener.version,
                listener.services,
                listener.mode == "sink",
                listener.status,
            )
            for listener in self.listeners
        )


def load(path: Path) -> Settings:
    """Read a YAML file. Raises SettingsError."""
    data = read_yaml(path)
    try:
        settings = from_data(data)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return settings


def from_data(data: Any) -> Settings:
    """Check plain data (what YAML gives). Raises SettingsError."""
    settings = convert(data, Settings)
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """What types cannot say. Raises SettingsError."""
    seen: dict[address.Address, str] = {}
    for number, listener in enumerate(settings.listeners):
        place = f"listeners[{number}]"
        try:
            listen = address.parse(listener.listen, lowest_port=0)
        except ValueError as error:
            raise SettingsError(f"{place}.listen: {error}") from None
        if listener.follow_upstream and not listen.path and not listen.port:
            raise SettingsError(f"{place}.follow_upstream: needs a fixed port in listen, to come back to")
        _check_upstream(place, listener, listen)
        if listen.port and listen in seen:
            raise SettingsError(f"{place}.listen: {listener.listen!r} is already taken by {seen[listen]}")
        seen[listen] = place
        _check_status(place, listener)
        if listener.dialect not in ("auto", *BY_NAME):
            known = ", ".join(("auto", *BY_NAME))
            raise SettingsError(f"{place}.dialect: {listener.dialect!r} is no dialect; known are {known}")
        for service, dialect in listener.services.items():
            if dialect not in EAS:
                raise SettingsError(
                    f"{place}.services.{service}: {dialect!r} is no dialect of EAS; known are {', '.join(EAS)}"
                )
        if listener.services and listener.dialect not in ("auto", *EAS):
            raise SettingsError(f"{place}.services: a listener of {listener.dialect} has no services; leave it out")
    if 0 < settings.capture.memory_bytes < LOWEST_MEMORY_BYTES:
        raise SettingsError(
            f"capture.memory_bytes: {settings.capture.memory_bytes} is less than a worker needs; give 0 (no limit) or"
            f" {LOWEST_MEMORY_BYTES} and more"
        )
    try:
        Levels(settings.capture.level, settings.capture.levels)
        check_rules(settings.capture.scrub_rules, settings.capture.scrub != "off")
    except ValueError as error:
        raise SettingsError(f"capture.{error}") from None
    _check_admin(settings.admin)


def _check_upstream(place: str, listener: Listener, listen: address.Address) -> None:
    if listener.mode == "sink":
        for name in ("upstream", "upstream_tls", "follow_upstream"):
            if getattr(listener, name):
                raise SettingsError(f"{place}.{name}: a listener of mode sink has no model server behind it; remove it")
        return
    if not listener.upstream:
        raise SettingsError(f"{place}.upstream: missing; give the model server's address, or mode: sink")
    try:
        upstream = address.parse(listener.upstream)
    except ValueError as error:
        raise SettingsError(f"{place}.upstream: {error}") from None
    if (tls := listener.upstream_tls) is not None:
        if bool(tls.certificate) != bool(tls.key):
            raise SettingsError(f"{place}.upstream_tls: certificate and key go together")
        if upstream.path and tls.verify and not tls.server_name:
            raise SettingsError(f"{place}.upstream_tls.server_name: missing; a Unix socket has no name to verify")
    if listen.accepts(upstream):
        raise SettingsError(f"{place}.upstream: {listener.upstream!r} is the listen address itself")


def _check_status(place: str, listener: Listener) -> None:
    if not listener.status:
        return
    if listener.mode == "sink":
        raise SettingsError(f"{place}.status: a copy passes at another time than the call; remove it for mode sink")
    scheme, separator, where = listener.status.partition("://")
    try:
        if not separator or scheme != "http" or where.startswith(":") or address.parse(where).path:
            raise ValueError("write http://host:port, TF Serving's REST port")
    except ValueError as error:
        raise SettingsError(f"{place}.status: {listener.status!r}: {error}") from None


def _check_admin(admin: Admin) -> None:
    if not admin.listen:
        return
    try:
        where = address.parse(admin.listen, lowest_port=0)
    except ValueError as error:
        raise SettingsError(f"admin.listen: {error}") from None
    if where.path:
        raise SettingsError(f"admin.listen: {admin.listen!r}: write host:port")
    if not admin.token_file and not where.loopback:
        raise SettingsError(
            f"admin.listen: {admin.listen!r} can be reached from elsewhere: set admin.token_file, or take 127.0.0.1"
        )
