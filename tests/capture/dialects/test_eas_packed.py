"""Bodies that clients compress without a word of it."""

from __future__ import annotations

import contextlib
import gzip
import subprocess
import sys
import zlib

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.dialects.base import Opaque, Route, Unreadable
from capture.dialects.eas import EasDialect
from capture.dialects.eas_packed import codings, unpack
from capture.dialects.table import EAS
from capture.wire.grpc import DecompressError
from tests.support.calls import eas
from tests.support.eas_bodies import BODIES, PACK
from tests.support.processes import ROOT

LIMIT = 1 << 20
LARGE = bytes(range(256)) * 2000


def dialect(name: str) -> EasDialect:
    found = EAS[name]
    assert isinstance(found, EasDialect)
    return found


def read_sent(name: str, sent: bytes, limit: int = LIMIT) -> tuple[str, bytes]:
    call, body = dialect(name).read_sent(Route(dialect(name), "predict", "rank", "/"), sent, limit)
    return call.signature.digest, body


@pytest.mark.parametrize("coding", PACK)
@pytest.mark.parametrize("name", BODIES)
def test_a_packed_body_is_the_same_call(name: str, coding: str) -> None:
    digest, body = read_sent(name, BODIES[name])
    assert body is BODIES[name]
    assert read_sent(name, PACK[coding](BODIES[name])) == (digest, BODIES[name])


@pytest.mark.parametrize("level", [0, 1, 3, 6, 9])
def test_every_level_of_zlib(level: int) -> None:
    sent = zlib.compress(BODIES["eas-tensorflow"], level)
    assert read_sent("eas-tensorflow", sent)[1] == BODIES["eas-tensorflow"]


@pytest.mark.parametrize("coding", PACK)
def test_what_is_found_by_its_first_bytes(coding: str) -> None:
    packed = PACK[coding](LARGE)
    assert coding in codings(packed)
    assert unpack(coding, packed, len(LARGE)) == LARGE


@pytest.mark.parametrize("coding", PACK)
def test_a_bomb_costs_no_more_than_the_bound(coding: str) -> None:
    bomb = PACK[coding](bytes(8 << 20))
    with pytest.raises(DecompressError, match=r"^over the bound$"):
        unpack(coding, bomb, (8 << 20) - 1)
    for name in ("eas-tensorflow", "eas-string"):
        with pytest.raises(Opaque, match=rf"^compressed body \({coding}\): over the bound$"):
            read_sent(name, bomb, LIMIT)


def unpack_or_none(coding: str, sent: bytes) -> bytes | None:
    try:
        return unpack(coding, sent, 1 << 24)
    except DecompressError:
        return None


@pytest.mark.parametrize("coding", PACK)
@pytest.mark.parametrize("broken", ["cut", "longer", "flipped"])
def test_what_does_not_unpack_is_not_believed(coding: str, broken: str) -> None:
    packed = PACK[coding](LARGE)
    middle = len(packed) // 2
    sent = {
        "cut": packed[:-3],
        "longer": packed + b"\xff\xff",
        "flipped": packed[:middle] + bytes(byte ^ 0xFF for byte in packed[middle : middle + 4]) + packed[middle + 4 :],
    }[broken]
    if broken == "flipped" and coding in ("snappy", "zstd"):
        # Without a checksum other bytes may come out: then the dialect has the last word.
        assert unpack_or_none(coding, sent) != LARGE
        return
    with pytest.raises(DecompressError):
        unpack(coding, sent, 1 << 24)


@pytest.mark.parametrize("coding", ["gzip", "zlib", "zstd", "lz4"])
def test_packed_bytes_that_are_no_call_say_what_they_were_packed_with(coding: str) -> None:
    with pytest.raises(Unreadable, match=rf"^compressed body \({coding}\): not an EAS TensorFlow PredictRequest$"):
        read_sent("eas-tensorflow", PACK[coding](b"\xff\xff" * 50))
    with pytest.raises(Unreadable, match=rf"^compressed body \({coding}\): .+$"):
        read_sent("eas-tensorflow", PACK[coding](BODIES["eas-tensorflow"])[:-1])


def test_what_only_begins_like_raw_snappy_is_told_as_what_it_is() -> None:
    for sent in (b"\x05\x10hell", b"\x03\x08\xff\xff\xff", bytes(cramjam.lz4.compress_block(BODIES["eas-pytorch"]))):
        with pytest.raises(Unreadable, match=r"^not an EAS TensorFlow PredictRequest$"):
            read_sent("eas-tensorflow", sent)


def test_raw_snappy_that_parses_as_the_message_is_unpacked_all_the_same() -> None:
    # Some lengths read as the tag of an unknown field, behind which the request stands as it is.
    for size in range(1, 400):
        body = eas({"x": [float(number) for number in range(size)]})
        sent = PACK["snappy"](body)
        assert read_sent("eas-tensorflow", sent)[1] == body


def test_text_that_would_unpack_as_snappy_is_text() -> None:
    text = b" |" + b"a sentence of two and thirty by."
    assert unpack("snappy", text, LIMIT) == text[2:]
    assert read_sent("eas-string", text)[1] is text


def test_several_gzip_members_are_one_body() -> None:
    body = BODIES["eas-string"]
    assert read_sent("eas-string", gzip.compress(body[:9]) + gzip.compress(body[9:]))[1] == body


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for magic in (b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x78\x9c"):
        for coding in codings(magic + data):
            with contextlib.suppress(DecompressError):
                assert len(unpack(coding, magic + data, 4096)) <= 4096


def test_the_library_is_loaded_only_when_it_is_needed() -> None:
    program = "import sys, capture.worker; assert 'cramjam' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
