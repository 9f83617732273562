"""Places of every kind, on real servers."""

from __future__ import annotations

import secrets
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replay.publishing.target import Target, open_target
from tests.support.object_stores import BUCKET, google, s3_and_oss

KINDS = ("file", "s3", "oss", "gs")


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    with s3_and_oss() as address:
        urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
        yield address


@pytest.fixture(scope="session")
def google_address() -> Iterator[str]:
    with google() as address:
        yield address


@pytest.fixture
def environment(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The clients' own variables, for S3 and OSS."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "s3-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": s3_address,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "OSS_ACCESS_KEY_ID": "LTAIEXAMPLE",
        "OSS_ACCESS_KEY_SECRET": "oss-secret",
        "OSS_ENDPOINT": s3_address,
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def url(environment: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """A URL of an empty place of a kind."""

    def made(kind: str) -> str:
        if kind == "gs":
            environment.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("google_address"))
        if kind == "file":
            (tmp_path / "place").mkdir(exist_ok=True)
            return f"file://{tmp_path / 'place'}"
        return f"{kind}://{BUCKET}/{secrets.token_hex(6)}"

    return made


@pytest.fixture
def s3(url: Callable[[str], str]) -> Target:
    return open_target(url("s3"))
