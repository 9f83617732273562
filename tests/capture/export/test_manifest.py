"""What a manifest keeps of the verifications of its files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capture.export.manifest import MANIFEST_VERSION, with_proof

PROVED = {"verdict": "proved", "level": "executor", "saved_model_sha256": "one"}


def noted(proof: dict[str, Any] | None, told: dict[str, Any], *, files: int = 1) -> Any:
    """The proof of the first file, whose manifest had ``proof``, after ``told``."""
    listed = [{"name": f"{number}.bin", "sha256": f"sha{number}"} for number in range(files)]
    value: dict[str, Any] = {"manifest_version": MANIFEST_VERSION, "warmtap": "1", "format": "eas-bin", "files": listed}
    (value if files == 1 else listed[0])["proof"] = proof
    found = with_proof(json.dumps(value).encode(), "sha0", told)
    assert found is not None
    read = json.loads(found)
    assert files == 1 or "proof" not in read["files"][1]
    return (read if files == 1 else read["files"][0])["proof"]


@pytest.mark.parametrize("files", [1, 2])
def test_a_proof_is_not_taken_back_by_what_only_says_less(files: int) -> None:
    fits = {"verdict": "fits", "level": "fits", "saved_model_sha256": "one"}
    check = {"verdict": "self-check", "level": "executor", "saved_model_sha256": "one"}
    assert noted(PROVED, fits, files=files) == PROVED
    assert noted(PROVED, check, files=files) == PROVED
    assert noted({"level": "none"}, fits, files=files) == fits
    assert noted(fits, check, files=files) == check
    assert noted(check, PROVED, files=files) == PROVED


def test_a_failure_and_another_model_take_its_place() -> None:
    failed = PROVED | {"verdict": "failed", "level": "fits"}
    other = {"verdict": "fits", "level": "fits", "saved_model_sha256": "two"}
    server = PROVED | {"level": "server"}
    assert noted(PROVED, failed) == failed
    assert noted(PROVED, other) == other
    assert noted(PROVED, server) == server


def test_a_manifest_of_other_bytes_is_none() -> None:
    assert with_proof(b'{"manifest_version": 1}', "sha0", PROVED) is None
    assert with_proof(b"no manifest", "sha0", PROVED) is None
