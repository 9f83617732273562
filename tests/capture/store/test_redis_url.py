"""What a URL of a store may say, what is refused in one line, and that no password shows anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.store.base import StoreError, open_store, shown_store
from capture.store.redis_link import PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE, Link
from capture.store.redis_url import RedisUrl, is_loopback, must_be_safe, parse, without_password


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", RedisUrl("redis://localhost", (("localhost", 6379),))),
        (
            "redis://me:s%2Fcret@127.0.0.1:7000/3?prefix=blue&timeout=0.5",
            RedisUrl(
                "redis://me:***@127.0.0.1:7000/3?prefix=blue&timeout=0.5",
                (("127.0.0.1", 7000),),
                username="me",
                password="s/cret",
                db=3,
                prefix="blue",
                timeout=0.5,
            ),
        ),
        ("redis://[::1]:7000", RedisUrl("redis://[::1]:7000", (("::1", 7000),))),
        (
            "rediss+cluster://a.example,b.example:7001?ca=/ca.pem&cert=/c&key=/k",
            RedisUrl(
                "rediss+cluster://a.example,b.example:7001?ca=/ca.pem&cert=/c&key=/k",
                (("a.example", 6379), ("b.example", 7001)),
                cluster=True,
                tls=True,
                ca="/ca.pem",
                cert="/c",
                key="/k",
            ),
        ),
        ("unix:///run/valkey.sock?db=2", RedisUrl("unix:///run/valkey.sock?db=2", (), "/run/valkey.sock", db=2)),
        (
            "redis://valkey?plaintext=allow",
            RedisUrl("redis://valkey?plaintext=allow", (("valkey", 6379),), plaintext=True),
        ),
    ],
)
def test_what_a_url_means(url: str, expected: RedisUrl) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("redsi://h", "store redsi://h: unknown kind 'redsi'; did you mean redis://?"),
        ("http://h", "store http://h: unknown kind 'http'; known are redis, rediss, redis+cluster, rediss+cluster,"
                     " unix, or a path"),
        ("redis://", "store redis://: no host; write redis://HOST:PORT"),
        ("redis://h:99999", "store redis://h:99999: Port out of range 0-65535"),
        ("redis://h:x", "store redis://h:x: Port could not be cast to integer value as 'x'"),
        ("redis://h/zero", "store redis://h/zero: 'zero' is no database; write redis://HOST:PORT/0"),
        ("redis://h/1?db=2", "store redis://h/1?db=2: the database is named twice"),
        ("redis://a,b", "store redis://a,b: several hosts are a cluster; write redis+cluster://"),
        ("redis+cluster://h/1", "store redis+cluster://h/1: a cluster has database 0 only; take a prefix instead:"
                                " ?prefix=NAME"),
        ("redis://h?prefx=x", "store redis://h?prefx=x: unknown option 'prefx'; did you mean prefix?"),
        ("redis://h?prefix={x}", "store redis://h?prefix={x}: prefix '{x}': take letters, digits and -:._"),
        ("redis://h?prefix=a&prefix=b", "store redis://h?prefix=a&prefix=b: an option is given twice"),
        ("redis://h?timeout=0", "store redis://h?timeout=0: timeout '0': give seconds, 0.05 to 60"),
        ("redis://h?ca=/x", "store redis://h?ca=/x: ca is for TLS; write rediss:// or rediss+cluster://"),
        ("rediss://h?cert=/x", "store rediss://h?cert=/x: cert and key go together"),
        ("redis://h?plaintext=yes", "store redis://h?plaintext=yes: plaintext=yes: write plaintext=allow, or leave it"
                                    " out"),
        ("redis://:a#b@h", "store redis://:***@h: in a password write / as %2F, ? as %3F, # as %23"),
        ("redis://h#b", "store redis://h#b: '#' has no meaning here; leave it out"),
        ("unix://run/x", "store unix://run/x: write unix:///path/of/the/socket"),
        ("redis://10.0.0.1", "store redis://10.0.0.1: requests would be sent to 10.0.0.1 unencrypted; write rediss://,"
                             " or allow it with ?plaintext=allow"),
        ("redis+cluster://127.0.0.1,v", "store redis+cluster://127.0.0.1,v: requests would be sent to v unencrypted;"
                                        " write rediss+cluster://, or allow it with ?plaintext=allow"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("create", [True, False])
def test_what_is_wrong_is_one_line_before_anything_is_sent(url: str, error: str, create: bool) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url, create=create)
    assert str(caught.value) == error


@pytest.mark.parametrize("url", ["redis://me:pa@ss@h:1", "redis://:p%40ss@h/0?prefix=x", "unix://:pass@/s"])
def test_a_password_does_not_show(url: str) -> None:
    assert shown_store(url) == parse(url).shown
    assert "ss" not in parse(url).shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pa?ss@h",
        "redis://me:pa/ss@h",
        "redis://me:p:a#ss@h",
        # urlsplit refuses these, and names what it refuses.
        "redis://:pa[ss@h",
        "redis://:pa]ss@h",
        "redis://:pa\u2100ss@h",
        "redis://h?password=pass",
        "redis://h?prefix=a&PASS=pass",
    ],
)
def test_a_password_does_not_show_in_an_error(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        parse(url)
    for text in (str(caught.value), shown_store(url)):
        for name in ("password", "PASS", "address"):
            text = text.replace(name, "")
        assert "ss" not in text


def test_a_path_is_shown_as_it_is() -> None:
    assert shown_store("/a:b@c") == "/a:b@c"


def test_the_password_of_a_subprocess_goes_another_way() -> None:
    assert without_password("redis://me:s%2Fcret@127.0.0.1:1/0") == ("redis://me@127.0.0.1:1/0", "s/cret")
    assert without_password("redis://:secret@127.0.0.1?prefix=a") == ("redis://127.0.0.1?prefix=a", "secret")
    assert without_password("unix:///s") == ("unix:///s", "")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.9", True), ("::1", True), ("10.0.0.1", False), ("valkey", False)],
)
def test_what_stays_on_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_with_tls_or_where_it_is_allowed_requests_may_go_anywhere() -> None:
    must_be_safe(parse("rediss://10.0.0.1"), ("10.0.0.1",))
    must_be_safe(parse("redis://10.0.0.1?plaintext=allow"), ("10.0.0.1",))
    must_be_safe(parse("unix:///s"), ())


def test_where_the_password_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("of the file\n")
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(file))
    assert Link(parse("redis://localhost")).url.password == "of the file"
    monkeypatch.setenv(PASSWORD_VARIABLE, "of the variable")
    assert Link(parse("redis://localhost")).url.password == "of the variable"
    assert Link(parse("redis://:own@localhost")).url.password == "own"
    monkeypatch.delenv(PASSWORD_VARIABLE)
    file.unlink()
    with pytest.raises(StoreError, match=r"^store redis://localhost: WARMTAP_STORE_PASSWORD_FILE=.*: No such file"):
        Link(parse("redis://localhost"))
