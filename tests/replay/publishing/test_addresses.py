"""URLs of places, and what is refused."""

from __future__ import annotations

import pytest

from capture.errors import UserError
from replay.publishing.addresses import Address, is_url, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket/a/b", Address("s3", "bucket", "a/b")),
        ("S3://bucket", Address("s3", "bucket", "")),
        ("gs://bucket/a/", Address("gs", "bucket", "a")),
        ("oss://bucket/a", Address("oss", "bucket", "a")),
        (
            "oss://bucket.oss-cn-hangzhou.aliyuncs.com/a",
            Address("oss", "bucket", "a", "oss-cn-hangzhou.aliyuncs.com"),
        ),
        ("file:///models/rank/", Address("file", "", "/models/rank")),
        ("file://localhost/models", Address("file", "", "/models")),
        ("file:///", Address("file", "", "/")),
    ],
)
def test_what_a_url_names(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://host/models", "http://...: no such kind of place; one of: file://, s3://, oss://, gs://"),
        ("models/rank", "models/rank://...: no such kind of place; one of: file://, s3://, oss://, gs://"),
        ("s3://", "s3://: no bucket in it; say s3://BUCKET/PATH"),
        ("s3:///a", "s3:///a: no bucket in it; say s3://BUCKET/PATH"),
        ("s3://bucket/a//b", "s3://bucket/a//b: an empty step, . or .. in a path of a bucket names nothing"),
        ("s3://bucket/a/../b", "s3://bucket/a/../b: an empty step, . or .. in a path of a bucket names nothing"),
        ("file://host/models", "file://host/models: a file URL names an absolute path: file:///models"),
        ("file://models", "file://models: a file URL names an absolute path: file:///models"),
    ],
)
def test_what_names_no_place(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:hidden@bucket/a",
        "oss://hidden@bucket",
        "s3://bucket/a?secret=hidden",
        "gs://bucket/a#hidden",
        "http://user:hidden@host/a",
    ],
)
def test_a_credential_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(("text", "url"), [("s3://b", True), ("C:/a", False), ("a/b", False), ("sqlite:x", False)])
def test_what_is_a_url(text: str, url: bool) -> None:
    assert is_url(text) is url
