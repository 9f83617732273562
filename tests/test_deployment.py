"""docker-compose.yml, its settings and its images, held against the program and against each other; nothing is run."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from capture.__main__ import application
from capture.coverage_metrics import ROWS as COVERAGE
from proxy import address, settings
from proxy.admin.metrics import rows
from replay.watch_metrics import ROWS as WATCH
from tests.test_architecture import PACKAGES, ROOT, SOURCES, imports

OURS = ("sidecar", "refresh")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = ROOT / "config" / "docker" / "Dockerfile"
GRPC_PORT = 8500  #: of TF Serving's image: tools/docker/Dockerfile, ENV GRPC_PORT


def parse(words: list[str]) -> dict[str, Any]:
    """What the program makes of a command line, without doing it. Raises the parser's own error."""
    group: Any = typer.main.get_command(application(words[0]))
    name, command, rest = group.resolve_command(group.make_context("capture", list(words)), list(words))
    found: dict[str, Any] = command.make_context(name, list(rest)).params
    return found


def mounts(service: str) -> dict[PurePosixPath, tuple[str, bool]]:
    """Directory or file in the container -> (volume or path on the host, whether it is writable)."""
    found = {}
    for mount in SERVICES[service]["volumes"]:
        if isinstance(mount, str):
            source, target, *mode = mount.split(":")
            found[PurePosixPath(target)] = source, mode != ["ro"]
        else:
            found[PurePosixPath(mount["target"])] = mount["source"], not mount.get("read_only", False)
    return found


def place(service: str, path: str) -> tuple[str, PurePosixPath, bool]:
    """The volume that a path of a container lies in, the path below it, and whether it is writable there."""
    for target, (source, writable) in mounts(service).items():
        if PurePosixPath(path).is_relative_to(target):
            return source, PurePosixPath(path).relative_to(target), writable
    raise AssertionError(f"{service}: {path} lies in no volume, and would go with the container")


def sidecar_settings() -> settings.Settings:
    """The settings that the sidecar's command line names, from where they are mounted from."""
    source, below, _ = place("sidecar", str(parse(SERVICES["sidecar"]["command"])["config"]))
    return settings.load(ROOT / source / below)


def stages() -> dict[str, list[str]]:
    """Stage of the Dockerfile -> its instructions, continuation lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if begin := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            found[begin[1]] = []
        else:
            found[list(found)[-1]].append(line)
    return found


def pinned(name: str) -> dict[str, Requirement]:
    """A file of requirements/ by name of the distribution."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def wanted(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def test_every_settings_file_is_read_by_the_program() -> None:
    for path in (ROOT / "config" / "example.yaml", *(ROOT / "config" / "compose").glob("*.yaml")):
        assert settings.load(path).listeners


@pytest.mark.parametrize("service", OURS)
def test_a_service_starts_a_command_that_exists(service: str) -> None:
    assert parse(SERVICES[service]["command"])
    target = SERVICES[service]["build"]["target"]
    assert 'ENTRYPOINT ["capture"]' in stages()[target]


@pytest.mark.parametrize(
    "words",
    [["refresh", "--no-such", "x"], ["refresh"], ["proxy", "--config"], ["no-such"], ["export", "--limit", "0"]],
    ids=" ".join,
)
def test_a_wrong_command_line_would_be_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|requires an argument|Input should be"):
        parse(words)


def test_command_lines_in_the_comments() -> None:
    lines = re.findall(r"^#   (docker compose .*)", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert len(lines) > 3
    for words in (shlex.split(line, comments=True) for line in lines):
        if "capture" in words:
            assert parse(words[words.index("capture") + 1 :])
        assert set(words) & {"up", *SERVICES}


def test_the_sidecar_forwards_to_serving_and_nothing_else_reaches_it() -> None:
    [listener] = sidecar_settings().listeners
    assert listener.upstream == f"serving:{GRPC_PORT}"
    assert "ports" not in SERVICES["serving"]
    assert str(GRPC_PORT) in SERVICES["serving"]["expose"]
    assert "serving" in SERVICES["sidecar"]["depends_on"]


def test_ports_are_published_on_loopback_and_lead_to_the_listener() -> None:
    listening = {address.parse(one.listen) for one in sidecar_settings().listeners}
    assert {one.host for one in listening} == {"0.0.0.0"}, "loopback inside a container is reached by nobody"
    published = [port.split(":") for name in SERVICES for port in SERVICES[name].get("ports", ())]
    assert {host for host, _, _ in published} == {"127.0.0.1"}
    assert {int(target) for _, _, target in published} == {one.port for one in listening}


def test_sidecar_and_refresh_share_the_store() -> None:
    written = place("sidecar", sidecar_settings().capture.store)
    assert written == place("refresh", parse(SERVICES["refresh"]["command"])["store"])
    volume, _, writable = written
    assert volume in COMPOSE["volumes"]
    # Reading it is writing too: SQLite's WAL.
    assert writable


def test_refresh_writes_where_serving_reads() -> None:
    options = parse(SERVICES["refresh"]["command"])
    base: Path = options["saved_model_base"]
    served = SERVICES["serving"]["environment"]
    name = served["MODEL_NAME"]
    # The entry point of TF Serving's image: --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME}
    read_from, served_path, may_write = place("serving", f"{served['MODEL_BASE_PATH']}/{name}")
    written_to, staged_path, writable = place("refresh", str(base))
    assert (options["model"] or base.name) == name
    assert read_from == written_to
    assert writable
    assert not may_write
    # A version that the server sees is loaded at once, without the file: it must be staged elsewhere. TF Serving takes
    # only children with numeric names for versions.
    assert served_path not in (staged_path, *staged_path.parents)
    assert staged_path not in served_path.parents


def test_one_user_owns_the_files() -> None:
    users = {SERVICES[name]["user"] for name in SERVICES}
    assert len(users) == 1
    [user] = users
    uid, gid = map(int, user.split(":"))
    assert uid > 0
    assert gid > 0
    created = " ".join(stages()["base"])
    assert f"groupadd --gid {gid} warmtap" in created
    assert f"useradd --uid {uid} --gid {gid}" in created
    for name in OURS:
        assert f"USER {user}" in stages()[SERVICES[name]["build"]["target"]]
        for target, (source, writable) in mounts(name).items():
            # An empty volume takes its owner from the image's directory.
            assert not writable or (source in COMPOSE["volumes"] and str(target) in created)


@pytest.mark.parametrize("service", SERVICES)
def test_containers_may_do_little(service: str) -> None:
    described = SERVICES[service]
    assert described["read_only"] is True
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    assert described["tmpfs"] == ["/tmp"]
    assert "privileged" not in described
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+", described["image"]) or "build" in described, "an image without a version"


def test_connections_may_end_before_the_sidecar_is_killed() -> None:
    assert float(SERVICES["sidecar"]["stop_grace_period"].removesuffix("s")) > sidecar_settings().relay.shutdown_timeout


def test_refresh_is_a_job() -> None:
    assert SERVICES["refresh"]["restart"] == "no"
    assert SERVICES["refresh"]["profiles"], "without a profile `up` would run it"


def test_the_executor_is_compiled_into_a_volume() -> None:
    [cache] = [line for line in stages()["refresh"] if line.startswith("ENV XDG_CACHE_HOME=")]
    volume, _, writable = place("refresh", cache.partition("=")[2])
    assert volume in COMPOSE["volumes"]
    assert writable
    assert any(re.search(r"apt-get install .*\bg\+\+", line) for line in stages()["refresh"])


@pytest.mark.parametrize("service", OURS)
def test_an_image_is_built_from_what_is_there(service: str) -> None:
    build = SERVICES[service]["build"]
    assert ROOT / build["context"] / build["dockerfile"] == DOCKERFILE
    assert build["target"] in stages()
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    for line in (line for lines in stages().values() for line in lines if line.startswith("COPY ")):
        words = line.split()[1:-1]
        if words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages()
            continue
        for source in words:
            assert (ROOT / source).exists()
            assert f"!{source.split('/')[0]}" in ignored
            assert not any(fnmatch.fnmatch(source, one.removeprefix("**/")) for one in ignored[1:])
    for source in mounts(service).values():
        assert not source[0].startswith(".") or (ROOT / source[0]).is_file()


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


def test_requirements_hold_all_dependencies_in_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sidecar = wanted(project["project"]["dependencies"])
    refresh = sidecar | wanted(project["project"]["optional-dependencies"]["tensorflow"])
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


def test_compose_itself_takes_the_file() -> None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            done = subprocess.run([*command, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return
    pytest.skip("neither the docker compose plugin nor docker-compose is installed")


def test_alert_rules_name_metrics_that_exist() -> None:
    rules = yaml.safe_load((ROOT / "config/prometheus/rules.yaml").read_text())
    exposed = {row.name for row in (*rows(), *COVERAGE, *WATCH)}
    documented = (ROOT / "docs/metrics.md").read_text()
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) > 5
    for rule in alerts:
        named = set(re.findall(r"warmtap_\w+", rule["expr"]))
        assert named
        assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= exposed, rule["alert"]
        assert rule["annotations"]["summary"]
        assert f"| `{rule['alert']}` |" in documented


def test_prometheus_itself_takes_the_rules() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    done = subprocess.run(
        ["promtool", "check", "rules", "config/prometheus/rules.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
