"""Who may ask, without a server."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from proxy.admin import auth
from proxy.settings import Admin


def test_a_token_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time cannot be measured here: what is seen is that every decision is the one of hmac.compare_digest."""
    token = "0123456789abcdef"
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    gate = auth.Gate(Admin(token_file=str(tmp_path / "token")), "127.0.0.1")
    compared: list[tuple[object, object]] = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return hmac.compare_digest(given, right)

    monkeypatch.setattr(auth, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    given = [token, token[:-1], "", "x" * 10_000]
    passed = []
    for one in given:
        request = make_mocked_request("GET", "/api/v1/status", headers={"Authorization": f"Bearer {one}"})
        passed.append(gate.check(request) is None)
    assert passed == [True, False, False, False]
    assert compared == [(one.encode(), token.encode()) for one in given]
