"""Files of certificates: what is wrong with them in one line, and that they are read again when they change."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capture.settings_errors import SettingsError
from proxy import certificates
from proxy.configs import check_certificates
from proxy.settings import Settings, from_data
from tests.support.certificates import Authority

LISTENER = {"listen": "127.0.0.1:1", "upstream": "localhost:2"}


def settings(**listener: Any) -> Settings:
    return from_data({"listeners": [LISTENER | listener]})


@pytest.mark.parametrize(
    ("listener", "message"),
    [
        ({"tls": {"certificate": "/none", "key": "/none"}}, "tls: /none: No such file or directory"),
        ({"tls": {"certificate": "a.crt", "key": "a.key"}}, ""),
        ({"tls": {"certificate": "a.crt", "key": "b.key"}}, "tls: b.key: is not the key of the certificate in a.crt"),
        ({"tls": {"certificate": "a.crt", "key": "locked.key"}}, "tls: locked.key: has a passphrase; give a key"),
        ({"tls": {"certificate": "junk", "key": "a.key"}}, "tls: junk, a.key: not a certificate and its key in PEM"),
        ({"tls": {"certificate": "a.crt", "key": "a.key", "client_ca": "junk"}}, "tls: junk: no certificates in PEM"),
        ({"tls": {"certificate": "a.crt", "key": "a.key", "alpn": ["x" * 256]}}, "tls: alpn "),
        ({"upstream_tls": {}}, ""),
        ({"upstream_tls": {"verify": False}}, ""),
        ({"upstream_tls": {"server_name": ".model"}}, "upstream_tls: server_name '.model' is no name"),
        ({"upstream": "[::1]:2", "upstream_tls": {}}, ""),
        ({"upstream_tls": {"ca": "junk"}}, "upstream_tls: junk: no certificates in PEM"),
        ({"upstream_tls": {"ca": "ca.pem", "certificate": "a.crt", "key": "b.key"}}, "upstream_tls: b.key: is not the"),
    ],
)
def test_what_is_wrong_is_one_line(
    listener: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    for name in ("a", "b"):
        authority.issue(name)
    authority.issue("locked", passphrase=b"secret")
    (tmp_path / "junk").write_text("junk")
    monkeypatch.chdir(tmp_path)
    if not message:
        check_certificates(settings(**listener))
        return
    with pytest.raises(SettingsError) as error:
        check_certificates(settings(**listener))
    assert str(error.value).startswith(f"listeners[0].{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("listener", "message"),
    [
        ({"upstream_tls": {"certificate": "c"}}, "listeners[0].upstream_tls: certificate and key go together"),
        (
            {"upstream": "unix:/s", "upstream_tls": {}},
            "listeners[0].upstream_tls.server_name: missing; a Unix socket has no name to verify",
        ),
    ],
)
def test_settings_that_cannot_be(listener: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings(**listener)
    assert str(error.value) == message


async def test_files_that_change_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new certificate whose key is not there yet changes nothing, and is told; links are followed."""
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.001)
    authority = Authority(tmp_path)
    own, new = authority.issue("own"), authority.issue("new")
    link = tmp_path / "tls.crt"
    link.symlink_to(own.certificate)
    effective = settings(tls={"certificate": str(link), "key": own.key})
    reloads: list[bool] = []
    told: list[str] = []
    monkeypatch.setattr(certificates.log, "error", lambda message, extra: told.append(str(extra["fields"]["error"])))
    watch = asyncio.get_running_loop().create_task(
        certificates.watch_certificates(lambda: effective, lambda: reloads.append(True))
    )

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    # Some looks at files that stay as they are.
    await asyncio.sleep(0.05)
    assert (reloads, told) == ([], [])
    os.symlink(new.certificate, tmp_path / "next")
    os.replace(tmp_path / "next", link)
    await until(lambda: bool(told))
    assert told == [f"listeners[0].tls: {own.key}: is not the key of the certificate in {link}"]
    assert reloads == []
    os.replace(new.key, own.key)
    await until(lambda: bool(reloads))
    assert (reloads, len(told)) == ([True], 1)
    # A key that was written before it could be read.
    Path(own.key).chmod(0o640)
    await until(lambda: len(reloads) == 2)
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
