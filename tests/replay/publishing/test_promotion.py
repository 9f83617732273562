"""Staged versions are let out object by object, saved_model.pb last; killed anywhere, the next one finishes it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capture.errors import UserError
from capture.export.manifest import MANIFEST_SUFFIX
from capture.export.tfrecord import WARMUP_PATH
from replay.publishing.place import RemotePlace, open_place
from replay.publishing.target import Target, open_target
from replay.refreshing.place import Version
from tests.support.processes import ROOT
from tests.support.promotion_killed import place_of, promote

pytestmark = pytest.mark.server

STAGED = Version("9", staged=True)
MANIFEST = WARMUP_PATH + MANIFEST_SUFFIX
FILES = {
    "assets/vocabulary.txt": b"a\nb\n",
    "saved_model.pb": b"graph",
    "variables/variables.data-00000-of-00001": bytes(3 << 20),
    "variables/variables.index": b"",
}
ALL = {**FILES, WARMUP_PATH: b"records", MANIFEST: b"{}"}


def fill(target: Target, version: str = "9", files: dict[str, bytes] = FILES) -> None:
    for name, data in files.items():
        target.write(f"{version}/{name}", data)


def held(target: Target, version: str) -> dict[str, bytes | None]:
    begin = f"{version}/"
    return {one.path.removeprefix(begin): target.read(one.path) for one in target.files(version)}


@pytest.fixture
def places(url: Callable[[str], str], tmp_path: Path) -> Callable[[str, str], tuple[str, str]]:
    """URLs of a base and a staging area of these kinds; both of one bucket where they are of one store."""

    def made(base: str, staging: str) -> tuple[str, str]:
        (tmp_path / "staged").mkdir()
        return url(base) + "/m", str(tmp_path / "staged") if staging == "file" else url(staging) + "/staged/m"

    return made


@pytest.mark.parametrize(
    ("base", "staging"),
    [("s3", "s3"), ("oss", "oss"), ("gs", "gs"), ("s3", "file"), ("file", "s3"), ("gs", "s3")],
)
def test_a_version_goes_out_whole_and_leaves_nothing_behind(
    base: str, staging: str, places: Callable[[str, str], tuple[str, str]]
) -> None:
    base_url, staging_url = places(base, staging)
    served, staged = (open_target(url if "://" in url else f"file://{url}") for url in (base_url, staging_url))
    place = open_place(base_url, staging_url)
    assert isinstance(place, RemotePlace)
    fill(staged)
    assert place.served() == []
    assert place.staged() == [STAGED]
    place.write(STAGED, ALL[WARMUP_PATH], ALL[MANIFEST])
    assert place.staged() == [Version("9", staged=True, warmed=True)]
    place.promote(STAGED)
    assert place.served() == [Version("9", staged=False, warmed=True)]
    assert place.staged() == []
    assert held(served, "9") == ALL
    assert served.files(".warmtap") == []
    assert staged.files("9") == []


def test_saved_model_goes_last_and_the_file_before_it(s3: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(open_target(f"{s3.url}/staged"), files=ALL)
    place = open_place(f"{s3.url}/m", f"{s3.url}/staged")
    order: list[str] = []
    copy = type(s3).copy

    def noted(self: Target, source: str, destination: str) -> object:
        order.append(destination.partition("/m/9/")[2])
        return copy(self, source, destination)

    monkeypatch.setattr(type(s3), "copy", noted)
    place.promote(STAGED)
    assert order == [
        *sorted(name for name in FILES if name != "saved_model.pb"),
        MANIFEST,
        WARMUP_PATH,
        "saved_model.pb",
    ]


def test_a_staged_version_without_its_marker_is_not_complete(s3: Target) -> None:
    staged = open_target(f"{s3.url}/staged")
    place = open_place(f"{s3.url}/m", f"{s3.url}/staged", "_SUCCESS")
    fill(staged)
    fill(staged, "10", {"_SUCCESS": b""})
    assert [(one.name, one.missing) for one in place.staged()] == [("9", "_SUCCESS"), ("10", "saved_model.pb")]
    staged.write("9/_SUCCESS", b"")
    assert [(one.name, one.missing) for one in place.staged()] == [("9", ""), ("10", "saved_model.pb")]


def test_a_number_that_is_in_use_is_left_alone(s3: Target) -> None:
    served, staged = open_target(f"{s3.url}/m"), open_target(f"{s3.url}/staged")
    fill(served, files={"saved_model.pb": b"other"})
    fill(staged)
    with pytest.raises(UserError, match=r"/m/9: is there already; stage it under another number, or remove the staged"):
        open_place(f"{s3.url}/m", f"{s3.url}/staged").promote(STAGED)
    assert held(served, "9") == {"saved_model.pb": b"other"}
    assert held(staged, "9") == FILES


def test_somebody_elses_half_version_is_not_touched(s3: Target) -> None:
    served, staged = open_target(f"{s3.url}/m"), open_target(f"{s3.url}/staged")
    fill(served, files={"variables/other": b"other"})
    fill(staged)
    with pytest.raises(UserError, match=r"variables/other is there and warmtap did not write it"):
        open_place(f"{s3.url}/m", f"{s3.url}/staged").promote(STAGED)
    assert held(served, "9") == {"variables/other": b"other"}


def test_a_staged_version_that_changes_meanwhile_is_not_let_out(s3: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    served, staged = open_target(f"{s3.url}/m"), open_target(f"{s3.url}/staged")
    fill(staged)
    place = open_place(f"{s3.url}/m", f"{s3.url}/staged")
    copy = type(s3).copy

    def meanwhile(self: Target, source: str, destination: str) -> object:
        staged.write("9/assets/late", b"late")
        return copy(self, source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(type(s3), "copy", meanwhile)
        with pytest.raises(UserError, match=r"/staged/9: changed while it was copied; write saved_model\.pb last"):
            place.promote(STAGED)
    assert "saved_model.pb" not in held(served, "9")
    assert place.served() == []
    # And what it is now goes out.
    staged.remove("9/assets/vocabulary.txt")
    place.promote(STAGED)
    expected = {name: data for name, data in FILES.items() if name != "assets/vocabulary.txt"}
    assert held(served, "9") == {**expected, "assets/late": b"late"}


@pytest.fixture
def killer(environment: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.promotion_killed"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def promoted(base: str, staging: str, step: int) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{base} {staging} {step}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    with process:
        yield promoted
        process.stdin.close()


#: More than any promotion here writes.
MANY = 200


@pytest.mark.parametrize("together", [True, False])
def test_a_kill_at_any_write_leaves_no_version_or_the_whole_one(
    together: bool, tmp_path: Path, killer: Callable[..., int]
) -> None:
    """What a server sees after each kill, and that the next promotion ends as if nothing had been. In directories that
    are never renamed: they stand for buckets, whose calls take longer."""
    seen = set()
    for step in range(MANY):
        base = f"file://{tmp_path}/{step}/m"
        staging = f"file://{tmp_path}/{step}/" + ("staged" if together else "other/staged")
        status = killed(base, staging, step, killer, seen)
        if status == 0:
            break
        # Temporary files, too: the version is a directory that a server reads.
        assert len([one for one in (tmp_path / str(step) / "m" / "9").rglob("*") if one.is_file()]) == len(ALL) - 1
    assert status == 0
    # Killed on either side of the write that lets it out.
    assert seen == {False, True}
    assert step > 3 * len(ALL)


@pytest.mark.parametrize(("staging", "steps"), [("s3", (3, 8)), ("file", (8, 12))])
def test_a_kill_with_a_real_store(
    staging: str, steps: tuple[int, ...], s3: Target, tmp_path: Path, killer: Callable[..., int]
) -> None:
    """While it copies, before and after saved_model.pb is there."""
    seen = set[bool]()
    for step in steps:
        place = f"file://{tmp_path}/{step}" if staging == "file" else f"{s3.url}/{step}/staged"
        assert killed(f"{s3.url}/{step}/m", place, step, killer, seen) == -signal.SIGKILL
    assert seen == {False, True}


def killed(base: str, staging: str, step: int, killer: Callable[..., int], seen: set[bool]) -> int:
    """Kill a promotion at its write number ``step``, and promote again. Its exit status; ``seen`` gets whether the
    version was visible in between."""
    served, staged = open_target(base), open_target(staging)
    files = {name: data[: 1 << 10] for name, data in ALL.items() if not name.startswith("assets/")}
    fill(staged, files=files)
    status = killer(base, staging, step)
    assert status in (0, -signal.SIGKILL)
    visible = held(served, "9")
    if "saved_model.pb" in visible:
        assert visible == files
    seen.add("saved_model.pb" in visible)
    promote(place_of(base, staging))
    assert held(served, "9") == files
    assert staged.files("9") == []
    assert served.files(".warmtap") == []
    return status


def test_a_retry_goes_on_where_it_stopped(s3: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "staged").mkdir()
    staged = open_target(f"file://{tmp_path / 'staged'}")
    fill(
        staged, files={"a": b"1" * (2 << 20), "b": b"2" * (2 << 20), "c": b"3" * (2 << 20), "saved_model.pb": b"graph"}
    )
    place = open_place(f"{s3.url}/m", str(tmp_path / "staged"))
    put = type(s3).put
    sent: list[str] = []

    def broken(self: Target, path: str, source: Path) -> object:
        sent.append(source.name)
        if source.name == "c" and sent.count("c") == 1:
            raise UserError("the network is gone")
        return put(self, path, source)

    monkeypatch.setattr(type(s3), "put", broken)
    with pytest.raises(UserError, match="the network is gone"):
        place.promote(STAGED)
    # One of those that were sent is another meanwhile.
    staged.write("9/b", b"4" * (2 << 20))
    place.promote(STAGED)
    assert sent == ["a", "b", "c", "b", "c", "saved_model.pb"]
    assert held(open_target(f"{s3.url}/m"), "9") == held(staged, "9") | {
        "a": b"1" * (2 << 20),
        "b": b"4" * (2 << 20),
        "c": b"3" * (2 << 20),
        "saved_model.pb": b"graph",
    }
