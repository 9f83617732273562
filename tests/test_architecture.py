"""Who may import whom, read from the source: imports inside functions and under TYPE_CHECKING count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("proxy", "capture", "replay")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

#: What decides and computes gets time, randomness and IO handed in.
PURE = (
    "capture/wire/*.py",
    "capture/exchange.py",
    "capture/open_exchange.py",
    "capture/pipeline.py",
    "capture/flow_saves.py",
    "capture/peers.py",
    "capture/retries.py",
    "capture/serving.py",
    "capture/attribution.py",
    "capture/shedding.py",
    "capture/doctor.py",
    "capture/scrubbing.py",
    "capture/convert/*.py",
    "capture/dialects/*.py",
    "capture/ingest/*.py",
    "capture/signature.py",
    "capture/tensor_info.py",
    "capture/differences.py",
    "capture/binomial.py",
    "capture/coverage.py",
    "capture/forward.py",
    "capture/coverage_metrics.py",
    "capture/metadata.py",
    "capture/levels.py",
    "capture/memo.py",
    "capture/notices.py",
    "capture/admission.py",
    "capture/admission_state.py",
    "capture/admission_told.py",
    "capture/store_pace.py",
    "capture/schema/tensors.py",
    "capture/schema/wire.py",
    "capture/schema/tensor_bytes.py",
    "capture/schema/inflating.py",
    "capture/export/base.py",
    "capture/export/batch.py",
    "capture/export/tfrecord.py",
    "capture/export/eas_bin.py",
    "capture/export/eas_txt.py",
    "capture/export/jsonl.py",
    "capture/export/entries.py",
    "capture/export/compare.py",
    "capture/export/read_tfrecord.py",
    "capture/export/read_requests.py",
    "capture/export/scrub*.py",
    "capture/export/select.py",
    "capture/export/manifest.py",
    "capture/store/base.py",
    "capture/store/redis_parts.py",
    "capture/store/copying.py",
    "capture/store/redis_url.py",
    "replay/publishing/addresses.py",
    "replay/publishing/json_text.py",
    "replay/verdict.py",
    "replay/watching.py",
    "replay/watch_metrics.py",
    "replay/refreshing/present.py",
    "replay/refreshing/union.py",
    "replay/refreshing/place.py",
)
IMPURE_MODULES = {
    "asyncio",
    "socket",
    "os",
    "time",
    "random",
    "threading",
    "subprocess",
    "sqlite3",
    "redis",
    "secrets",
    "signal",
}
#: Modules that may name one impure thing, and why.
PURE_EXCEPTIONS = {
    # open_store is the one place that knows the kinds of store; it loads them when it is called.
    "capture/store/base.py": {"capture.store.sqlite", "capture.store.redis_store"},
}
#: The relay is on the path: of capture it may load only this.
RELAY = ("proxy/relay.py", "proxy/flow.py", "proxy/sides.py", "proxy/upstream.py", "proxy/address.py")
RELAY_MAY = {"capture.tap", "capture.tap_writer", "capture.counters"}

MAX_LINES = 400
#: Longer files, and why.
LONG_FILES = {
    "capture/tap_writer.py": "one state machine: cutting it would spread its invariant over two files",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Full names of everything that a file imports, ``from a import b`` as ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(path: Path) -> set[str]:
    """The modules among them that are this project's, by full name; and top-level names of all others."""
    found = set()
    for name in imports(path):
        if name.split(".")[0] not in PACKAGES:
            found.add(name.split(".")[0])
        elif (ROOT / (name.replace(".", "/") + ".py")).is_file():
            found.add(name)
    return found


def test_there_is_something_to_look_at() -> None:
    assert {name_of(path).split("/")[0] for path in SOURCES} == set(PACKAGES)
    assert "capture.tap" in {name for path in SOURCES for name in modules(path)}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_arrow(path: Path) -> None:
    package = name_of(path).split("/")[0]
    allowed = {"capture": {"capture"}, "proxy": {"proxy", "capture"}, "replay": {"replay", "capture"}}[package]
    used = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
    assert used <= allowed


@pytest.mark.parametrize("name", RELAY)
def test_the_relay_loads_of_capture_only_the_tap(name: str) -> None:
    # And through what it loads of its own package.
    seen, waiting = set(), [name]
    while waiting:
        path = waiting.pop()
        for module in modules(ROOT / path):
            if module.startswith("proxy.") and module not in seen:
                waiting.append(module.replace(".", "/") + ".py")
            seen.add(module)
    assert {module for module in seen if module.startswith("capture")} <= RELAY_MAY


@pytest.mark.parametrize("path", sorted({path for glob in PURE for path in ROOT.glob(glob)}), ids=name_of)
def test_pure_modules(path: Path) -> None:
    used = modules(path)
    assert used & IMPURE_MODULES == set()
    stores = {name for name in used if name.startswith("capture.store.") and name != "capture.store.base"}
    assert stores <= PURE_EXCEPTIONS.get(name_of(path), set())


def test_every_pure_module_is_there() -> None:
    assert [glob for glob in PURE if not list(ROOT.glob(glob))] == []


@pytest.mark.parametrize("path", [path for path in SOURCES if name_of(path).startswith("capture/")], ids=name_of)
def test_capture_loads_no_server_and_no_tensorflow(path: Path) -> None:
    assert modules(path) & {"tensorflow", "tensorflow_serving", "grpc", "aiohttp", "uvloop", "numpy"} == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    if name_of(path) in LONG_FILES:
        assert lines > MAX_LINES, "it is short now: take it off the list"
    else:
        assert lines <= MAX_LINES


def test_packages_hold_no_logic_in_init() -> None:
    for path in SOURCES:
        if path.name == "__init__.py":
            assert all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body), path
