"""Every command that takes a store takes a server's URL, says the same of it as of a file, and shows no password."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from capture.__main__ import main
from capture.store.base import Batch, open_store
from tests.support.stores import NOW, add, held_out, signature
from tests.support.valkey import Server

pytestmark = pytest.mark.server
PASSWORD = "s3cret-of-this-test"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store in a file: requests that the corner-case model takes, as its traffic would be."""
    path = str(tmp_path_factory.mktemp("file") / "store.sqlite")
    with closing(open_store(path, create=True)) as store:
        batch = Batch("run1", counters={"requests_observed": 40, "requests_lost": 2}, updated_at=NOW)
        for place, outputs in enumerate((["sum"], ["sum", "double"])):
            one = signature(outputs, model="edge")
            key = add(batch, one, proven=10 * (place + 1))
            held_out(batch, key, f"h{place}", batch.samples[key].body)
        add(batch, signature(["e"], family="eas", model="rank"), version="unknown")
        batch.refusals["tfserving", "edge", "refused", "unknown signature"] = 3
        batch.ignored["HTTP GET, other path"] = 4
        store.apply(batch)
    return path


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, file: str) -> Iterator[str]:
    """The same in a server, which asks for a password."""
    with Server(tmp_path_factory.mktemp("s"), "--requirepass", PASSWORD) as server:
        where = server.url.replace("//", f"//:{PASSWORD}@")
        with pytest.raises(SystemExit) as ended:
            main(["store", "copy", file, where])
        assert ended.value.code == 0
        yield where


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    said = capsys.readouterr()
    assert PASSWORD not in said.out + said.err
    return ended.value.code, said.out, said.err


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "--json", "--store", "STORE"),
        ("ls", "--store", "STORE"),
        ("ls", "--refused", "--store", "STORE"),
        ("show", "w1-", "--store", "STORE"),
        ("status", "--json", "--store", "STORE"),
        ("inspect", "STORE"),
        ("verify", "--level", "fits", "--json", "--saved-model", "MODEL", "--model", "edge", "--traffic", "STORE"),
        ("verify", "--level", "fits", "--saved-model", "MODEL", "--model", "none", "--traffic", "STORE"),
    ],
    ids=" ".join,
)
def test_it_says_the_same_of_a_file_and_of_a_server(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], file: str, url: str, edge: Path
) -> None:
    said = []
    for store in (file, url):
        told = run(capsys, *({"STORE": store, "MODEL": str(edge)}.get(word, word) for word in words))
        shown = url.replace(PASSWORD, "***")
        said.append([text.replace(file, "STORE").replace(shown, "STORE") for text in map(str, told)])
    assert said[0] == said[1]
    assert said[0][1] + said[0][2]


def test_export_writes_the_same_files_and_coverage_judges_them_alike(
    capsys: pytest.CaptureFixture[str], file: str, url: str, tmp_path: Path
) -> None:
    found = []
    for name, store in (("file", file), ("server", url)):
        out = tmp_path / name / "warmup"
        out.parent.mkdir()
        words = ("--format", "tfrecord", "--model", "edge", "--model-version", "1", "--out", str(out))
        assert run(capsys, "export", *words, "--store", store)[0] == 0
        covered = run(capsys, "coverage", "--json", "--warmup", str(out), "--model", "edge", "--store", store)
        assert run(capsys, "diff", store, str(out), "--model", "edge")[0] == 0
        files = {path.name: path.read_bytes() for path in out.parent.iterdir()}
        assert not [one for one, data in files.items() if PASSWORD.encode() in data]
        # The second in which the file was written is not what is compared.
        judged = re.sub(r'"(since|from|to)": *[^,}]+', r'"\1": 0', covered[1].replace(str(out), "FILE"))
        found.append((out.read_bytes(), sorted(files), covered[0], judged))
    assert found[0] == found[1]


def test_ingest_into_a_server(capsys: pytest.CaptureFixture[str], file: str, url: str, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    words = ("--format", "jsonl", "--model", "edge", "--out", str(records))
    assert run(capsys, "export", *words, "--store", file)[0] == 0
    where = f"{url}?prefix=ingested"
    assert run(capsys, "ingest", str(records), "--store", where)[0] == 0
    assert "ingested before" in run(capsys, "ingest", str(records), "--store", where)[2]
    with closing(open_store(where)) as store:
        assert sum(row.hits for row in store.signatures("edge")) == 30


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "--store", "STORE"),
        ("show", "w1-", "--store", "STORE"),
        ("export", "--format", "tfrecord", "--model", "edge", "--out", "OUT", "--store", "STORE"),
        ("coverage", "--warmup", "OUT", "--store", "STORE"),
        ("store", "copy", "STORE", "OUT"),
        ("store", "copy", "FILE", "STORE"),
        ("ingest", "FILE", "--format", "jsonl", "--store", "STORE"),
        ("diff", "STORE", "FILE"),
        ("inspect", "STORE"),
        ("verify", "--level", "fits", "--saved-model", "MODEL", "--traffic", "STORE"),
        ("watch", "--metrics", "http://127.0.0.1:1", "--store", "STORE"),
        ("replay", "STORE", "--target", "grpc://127.0.0.1:1"),
        ("refresh", "--saved-model-base", "OUT", "--store", "STORE"),
    ],
    ids=" ".join,
)
def test_a_server_that_is_not_there_is_one_line_without_the_password(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], file: str, edge: Path, tmp_path: Path
) -> None:
    store = f"redis://me:{PASSWORD}@127.0.0.1:1"
    places = {"STORE": store, "OUT": str(tmp_path), "FILE": file, "MODEL": str(edge)}
    status, _, error = run(capsys, *(places.get(word, word) for word in words))
    assert status in (1, 2)
    assert len(error.splitlines()) == 1, error
    if "--warmup" not in words and words[0] != "refresh":
        assert "redis://me:***@127.0.0.1:1: " in error
        assert "Connection refused" in error
