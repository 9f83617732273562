"""docker-compose.yml and its settings, held against the program and against each other; nothing is run."""

from __future__ import annotations

import importlib.resources
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml

from proxy import address, settings
from tests.support.command_words import parse
from tests.support.image import DOCKERFILE, history, stages
from tests.test_architecture import ROOT

OURS = ("sidecar", "refresh")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GRPC_PORT = 8500  #: of TF Serving's image: tools/docker/Dockerfile, ENV GRPC_PORT


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


@pytest.mark.parametrize("service", OURS)
def test_a_service_starts_a_command_that_exists(service: str) -> None:
    assert parse(SERVICES[service]["command"])
    assert 'ENTRYPOINT ["capture"]' in history(SERVICES[service]["build"]["target"])


@pytest.mark.parametrize(
    "words",
    [["refresh", "--no-such", "x"], ["proxy", "--config"], ["no-such"], ["export", "--limit", "0"]],
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
    created = " ".join(stages()["base"].lines)
    for name in OURS:
        assert f"USER {user}" in history(SERVICES[name]["build"]["target"])
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
    [cache] = [line for line in history("refresh") if line.startswith("ENV XDG_CACHE_HOME=")]
    volume, _, writable = place("refresh", cache.partition("=")[2])
    assert volume in COMPOSE["volumes"]
    assert writable


@pytest.mark.parametrize("service", OURS)
def test_an_image_is_built_from_what_is_there(service: str) -> None:
    build = SERVICES[service]["build"]
    assert ROOT / build["context"] / build["dockerfile"] == DOCKERFILE
    assert build["target"] in stages()
    for source in mounts(service).values():
        assert not source[0].startswith(".") or (ROOT / source[0]).is_file()


def test_the_schema_of_compose_takes_the_file() -> None:
    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = yaml.safe_load(vendored.read_text())
    jsonschema.validate(COMPOSE, schema, cls=jsonschema.Draft7Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(COMPOSE | {"servces": {}}, schema, cls=jsonschema.Draft7Validator)


def test_compose_itself_takes_the_file() -> None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            done = subprocess.run([*command, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return
    pytest.skip("neither the docker compose plugin nor docker-compose is installed")
