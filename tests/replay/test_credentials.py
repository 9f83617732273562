"""Credentials are read from files and the environment alone, and are in no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.errors import UserError
from replay.credentials import read_credential

SECRET = "hunter2-token"


def test_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    monkeypatch.setenv("THE_TOKEN", SECRET)
    for where in (f"@{tmp_path / 'token'}", "env:THE_TOKEN"):
        assert read_credential(f"eas-token:{where}").headers("/", b"", "") == {"Authorization": SECRET}
        assert read_credential(f"bearer:{where}").headers("/", b"", "") == {"Authorization": f"Bearer {SECRET}"}


def test_it_does_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_TOKEN", SECRET)
    credential = read_credential("bearer:env:THE_TOKEN")
    assert SECRET not in repr(credential)
    assert credential.hide(f"bad token {SECRET}!") == "bad token ***!"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SECRET, "no such kind"),
        (f"{SECRET}:@file", "no such kind"),
        (f"eas-token:{SECRET}", "a secret is no argument"),
        ("bearer:env:NOT_THERE", "NOT_THERE is empty"),
        ("bearer:@", "Is a directory"),
        ("bearer:@/not/there", "/not/there: No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_without_the_text(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read_credential(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"a\r\nX-Other: b", "more than one line"), (b"\xff\xfe", "is no text"), ("ä".encode(), "what no HTTP header")],
)
def test_a_file_that_no_header_may_hold(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_credential(f"bearer:@{path}")
