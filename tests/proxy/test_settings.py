"""Settings: what is wrong is told in one line, with its place and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from capture.settings_errors import SettingsError
from proxy import address, command
from proxy.settings import Settings, from_data, load

ROOT = Path(__file__).parents[2]
ONE = {"listen": "127.0.0.1:8500", "upstream": "127.0.0.1:18500"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"listeners": [ONE], "relay": {"conect_timeout": 1}},
            "relay.conect_timeout: unknown key; did you mean connect_timeout?",
        ),
        (
            {"listeners": [ONE | {"dialect": "eas"}]},
            "listeners[0].dialect: 'eas' is no dialect; known are auto, tfserving-grpc, tfserving-rest, eas-tensorflow,"
            " eas-pytorch, eas-onnx, eas-easyrec, eas-torchrec, eas-string",
        ),
        (
            {"listeners": [ONE | {"services": {"rank": "pytorch"}}]},
            "listeners[0].services.rank: 'pytorch' is no dialect of EAS; known are eas-tensorflow, eas-pytorch,"
            " eas-onnx, eas-easyrec, eas-torchrec, eas-string",
        ),
        (
            {"listeners": [ONE | {"dialect": "tfserving-grpc", "services": {"rank": "eas-onnx"}}]},
            "listeners[0].services: a listener of tfserving-grpc has no services; leave it out",
        ),
        (
            {"listeners": [ONE | {"dialekt": "eas"}]},
            "listeners[0].dialekt: unknown key; did you mean dialect?",
        ),
        (
            {"listeners": [ONE], "capture": {"limits": {"request_byts": 1}}},
            "capture.limits.request_byts: unknown key; did you mean request_bytes?",
        ),
        (
            {"listeners": [ONE], "zzz": 1},
            "zzz: unknown key; known are listeners, relay, tap, sink, capture, admin, workers, takeover_socket, "
            "log_level",
        ),
        (
            {"listeners": [ONE], "relay": {"connect_timeout": "5s"}},
            "relay.connect_timeout: expected `float`, got `str`",
        ),
        ({"listeners": [ONE], "relay": {"connect_timeout": -1}}, "relay.connect_timeout: expected `float` >= 0.0"),
        (
            {"listeners": [ONE], "log_level": "loud"},
            "log_level: 'loud' is not known; known are debug, error, info, warning",
        ),
        ({}, "listeners: missing"),
        (
            {"listeners": [ONE | {"mode": "mirror"}]},
            "listeners[0].mode: 'mirror' is not known; known are relay, sink",
        ),
        (
            {"listeners": [ONE | {"mode": "sink"}]},
            "listeners[0].upstream: a listener of mode sink has no model server behind it; remove it",
        ),
        (
            {"listeners": [{"listen": ":8500", "mode": "sink", "follow_upstream": True}]},
            "listeners[0].follow_upstream: a listener of mode sink has no model server behind it; remove it",
        ),
        (
            {"listeners": [{"listen": ":8500", "mode": "sink", "status": "http://h:8501"}]},
            "listeners[0].status: a copy passes at another time than the call; remove it for mode sink",
        ),
        *(
            (
                {"listeners": [ONE | {"status": status}]},
                f"listeners[0].status: '{status}': write http://host:port, TF Serving's REST port",
            )
            for status in ("h:8501", "https://h:8501", "http://:8501", "http://unix:/s")
        ),
        (None, "settings: expected `object`, got `null`"),
        ({"listeners": []}, "listeners: expected `array` of length >= 1"),
        (
            {"listeners": [{"listen": ":8500"}]},
            "listeners[0].upstream: missing; give the model server's address, or mode: sink",
        ),
        (
            {"listeners": [ONE | {"listen": "8500"}]},
            "listeners[0].listen: '8500' is not an address; write host:port, for example 127.0.0.1:8500",
        ),
        (
            {"listeners": [ONE | {"upstream": "http://a:1"}]},
            "listeners[0].upstream: 'http://a:1' is not an address; write host:port without a scheme",
        ),
        (
            {"listeners": [ONE | {"upstream": "::1:9"}]},
            "listeners[0].upstream: '::1:9': an IPv6 address stands in brackets, for example [::1]:8500",
        ),
        (
            {"listeners": [ONE | {"upstream": "a:70000"}]},
            "listeners[0].upstream: 'a:70000': port 70000 is not between 1 and 65535",
        ),
        (
            {"listeners": [ONE | {"upstream": "unix:sock"}]},
            "listeners[0].upstream: 'unix:sock': a Unix socket is written unix:/absolute/path",
        ),
        (
            {"listeners": [ONE, ONE | {"listen": ":8500"}]},
            "listeners[1].listen: ':8500' is already taken by listeners[0]",
        ),
        (
            {"listeners": [ONE | {"upstream": ":8500"}]},
            "listeners[0].upstream: ':8500' is the listen address itself",
        ),
        (
            {"listeners": [ONE | {"listen": "0.0.0.0:1", "upstream": "localhost:1"}]},
            "listeners[0].upstream: 'localhost:1' is the listen address itself",
        ),
        (
            {"listeners": [ONE], "relay": {"half_closed_timeout": float("inf")}},
            "relay.half_closed_timeout: expected `float` <= 315360000.0",
        ),
        (
            {"listeners": [ONE], "relay": {"tcp_user_timeout": 3e6}},
            "relay.tcp_user_timeout: expected `float` <= 2147483.0",
        ),
        (
            {"listeners": [ONE], "capture": {"memory_bytes": 1 << 63}},
            "capture.memory_bytes: expected `int` <= 4611686018427387904",
        ),
        (
            {"listeners": [ONE], "capture": {"memory_bytes": 1 << 20}},
            "capture.memory_bytes: 1048576 is less than a worker needs; give 0 (no limit) or 134217728 and more",
        ),
    ],
)
def test_a_mistake_is_one_line(data: Any, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        from_data(data)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("listen", "upstream", "message"),
    [
        ([], [], "nothing to do: give --listen and --upstream, --sink, or --config FILE.yaml"),
        ([":1", ":2"], [":3"], "2 --listen and 1 --upstream: each --listen needs one"),
        ([":1"], ["x"], "listeners[0].upstream: 'x' is not an address; write host:port, for example 127.0.0.1:8500"),
    ],
)
def test_a_mistake_on_the_command_line(
    listen: list[str], upstream: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end:
        command.proxy(listen, upstream)
    assert end.value.exit_code == 2
    assert capsys.readouterr().err == f"capture proxy: {message}\n"


@pytest.mark.parametrize("scheme", ["", "sqlite:"])
@pytest.mark.parametrize("place", ["absent/s.sqlite", "file/s.sqlite"])
def test_a_store_in_a_directory_that_is_not_there(
    place: str, scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    store = f"{scheme}{tmp_path / place}"
    with pytest.raises(typer.Exit) as end:
        command.proxy([":0"], [":1"], store=store)
    assert end.value.exit_code == 2
    missing = (tmp_path / place).parent
    expected = f"capture proxy: store {store}: no directory {missing}; create it, or name another place\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("store", ["s.sqlite", "/", "redis://host/0", "x" * 300 + "/s", "pyproject.toml"])
def test_nothing_else_about_a_store_stops_the_relay(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run", lambda _, **__: 0)
    with pytest.raises(typer.Exit) as end:
        command.proxy([":0"], [":1"], store=store)
    assert end.value.exit_code == 0


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with pytest.raises(SettingsError, match=r"s\.yaml: No such file or directory"):
        load(path)
    path.write_text("listeners: [")
    with pytest.raises(SettingsError, match=r"s\.yaml: not YAML: "):
        load(path)
    path.write_text("listeners: []")
    with pytest.raises(SettingsError, match=r"s\.yaml: listeners: expected"):
        load(path)


def test_the_example_loads_and_shows_the_defaults() -> None:
    settings = load(ROOT / "config" / "example.yaml")
    assert settings == Settings(listeners=settings.listeners)


def test_every_setting_has_a_help_text() -> None:
    def check(cls: Any) -> None:
        for field in msgspec.structs.fields(cls):
            info = msgspec.inspect.type_info(field.type)
            assert isinstance(info, msgspec.inspect.Metadata), field.name
            assert info.extra_json_schema is not None, field.name
            assert info.extra_json_schema["description"], field.name
            inner = info.type.item_type if isinstance(info.type, msgspec.inspect.VarTupleType) else info.type
            if isinstance(inner, msgspec.inspect.StructType) and inner.cls.__module__ == "proxy.settings":
                check(inner.cls)

    check(Settings)


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "model:80", "unix:/run/s"])
def test_addresses_read_back(text: str) -> None:
    assert str(address.parse(text)) == text


def test_an_address_without_host_is_loopback() -> None:
    assert address.parse(":80") == ("127.0.0.1", 80, "")


@pytest.mark.parametrize(
    ("listen", "upstream", "itself"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("localhost:1", "127.0.0.1:1", True),
        ("[::1]:1", "localhost:1", True),
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("0.0.0.0:1", "0.0.0.0:1", True),
        ("[::]:1", "127.0.0.2:1", True),
        ("127.0.0.1:1", "0.0.0.0:1", True),
        ("unix:/a", "unix:/a", True),
        # What works is not refused.
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("0.0.0.0:1", "127.0.0.1:2", False),
        ("0.0.0.0:1", "10.0.0.1:1", False),
        ("0.0.0.0:1", "model:1", False),
        ("10.0.0.1:1", "127.0.0.1:1", False),
        ("0.0.0.0:1", "unix:/a", False),
    ],
)
def test_a_sidecar_that_would_connect_to_itself(listen: str, upstream: str, itself: bool) -> None:
    """Each connection would make the next one, until no descriptor is left."""
    assert address.parse(listen).accepts(address.parse(upstream)) is itself


def test_a_store_without_a_name_is_not_the_default_one(capsys: pytest.CaptureFixture[str]) -> None:
    """``--store "$STORE"`` with STORE unset."""
    with pytest.raises(typer.Exit) as end:
        command.proxy([":1"], [":2"], store="")
    assert end.value.exit_code == 2
    assert capsys.readouterr().err == "capture proxy: --store is empty: name a file, or leave it out\n"
