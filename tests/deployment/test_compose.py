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

from capture.store.redis_url import must_be_safe
from capture.store.redis_url import parse as parse_url
from proxy import address, settings
from replay.refreshing import settings as refreshing
from replay.watching import METRICS_PATH
from tests.support.command_words import parse
from tests.support.image import DOCKERFILE, history, stages
from tests.test_architecture import ROOT

OURS = ("sidecar", "refresh", "watch")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GRPC_PORT, REST_PORT = 8500, 8501  #: of TF Serving's image: tools/docker/Dockerfile, ENV GRPC_PORT and PORT


def mounts(service: str) -> dict[PurePosixPath, tuple[str, bool]]:
    """Directory or file in the container -> (volume or path on the host, whether it is writable)."""
    found = {}
    for mount in SERVICES[service].get("volumes", ()):
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
    return settings.load(named("sidecar"))


def option(service: str, name: str) -> str:
    """A value of the command line."""
    words = SERVICES[service]["command"]
    return str(words[words.index(name) + 1])


def job() -> refreshing.Settings:
    """The same of the job."""
    return refreshing.load(named("refresh"))


def build(service: str) -> dict[str, str]:
    """How its image is built, which another service may say."""
    image = SERVICES[service]["image"]
    [found] = [one["build"] for one in SERVICES.values() if one["image"] == image and "build" in one]
    return dict(found)


def named(service: str) -> Path:
    source, below, _ = place(service, str(parse(SERVICES[service]["command"])["config"]))
    return ROOT / source / below


@pytest.mark.parametrize("service", OURS)
def test_a_service_starts_a_command_that_exists(service: str) -> None:
    assert parse(SERVICES[service]["command"])
    assert 'ENTRYPOINT ["capture"]' in history(build(service)["target"])


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
        assert set(words) & {"up", *SERVICES}
        if "exec" in words:
            assert words[words.index("sidecar") + 1] == "capture"
            assert parse(words[words.index("capture") + 1 :])
        elif "run" in words and "--entrypoint" not in words:
            assert parse(words[words.index("refresh") + 1 :])


def test_the_sidecar_forwards_to_serving_and_nothing_else_reaches_it() -> None:
    found = sidecar_settings().listeners
    assert {one.name: one.upstream for one in found} == {
        "grpc": f"serving:{GRPC_PORT}",
        "rest": f"serving:{REST_PORT}",
    }
    assert {one.status for one in found} == {f"http://serving:{REST_PORT}"}
    assert "ports" not in SERVICES["serving"]
    assert {str(GRPC_PORT), str(REST_PORT)} == set(SERVICES["serving"]["expose"])
    assert {"serving", "valkey"} <= set(SERVICES["sidecar"]["depends_on"])


def test_ports_are_published_on_loopback_and_lead_to_the_listener() -> None:
    listening = {address.parse(one.listen) for one in sidecar_settings().listeners}
    assert {one.host for one in listening} == {"0.0.0.0"}, "loopback inside a container is reached by nobody"
    published = [port.split(":") for name in SERVICES for port in SERVICES[name].get("ports", ())]
    assert {host for host, _, _ in published} == {"127.0.0.1"}
    watching = address.parse(option("watch", "--listen"))
    assert watching.host == "0.0.0.0"
    assert {int(target) for _, _, target in published} == {one.port for one in (*listening, watching)}


def test_sidecar_and_refresh_share_a_store_that_nobody_else_reaches() -> None:
    stores = {sidecar_settings().capture.store, job().store, option("watch", "--store")}
    assert len(stores) == 1
    url = parse_url(stores.pop())
    [(host, _)] = url.hosts
    must_be_safe(url, (host,))
    [network] = SERVICES[host]["networks"]
    assert COMPOSE["networks"][network]["internal"] is True
    assert {name for name in SERVICES if network in SERVICES[name]["networks"]} == {host, *OURS}
    assert "ports" not in SERVICES[host]
    volume, _, writable = place(host, "/data")  # where the image keeps it: WORKDIR
    assert volume in COMPOSE["volumes"]
    assert writable


def test_what_is_watched_is_the_model_server_and_it_tells_its_metrics() -> None:
    assert option("watch", "--metrics") == f"http://serving:{REST_PORT}"
    [flag] = SERVICES["serving"]["command"]
    source, below, _ = place("serving", flag.removeprefix("--monitoring_config_file="))
    told = (ROOT / source / below).read_text()
    assert "enable: true" in told
    assert f'path: "{METRICS_PATH}"' in told


def test_refresh_writes_where_serving_reads() -> None:
    [model] = job().models
    served = SERVICES["serving"]["environment"]
    # The entry point of TF Serving's image: --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME}
    assert (model.model, model.base) == (served["MODEL_NAME"], f"{served['MODEL_BASE_PATH']}/{served['MODEL_NAME']}")
    read_from, _, may_write = place("serving", model.base)
    written_to, served_path, writable = place("refresh", model.base)
    staged_in, staged_path, _ = place("refresh", model.staging)
    assert read_from == written_to == staged_in
    assert writable
    assert not may_write
    # A version that the server sees is loaded at once, without the file: it must be staged elsewhere.
    assert served_path not in (staged_path, *staged_path.parents)


def test_one_user_owns_the_files() -> None:
    [user] = {SERVICES[name]["user"] for name in ("serving", *OURS)}
    assert all(int(SERVICES[name]["user"].split(":")[0]) > 0 for name in SERVICES)
    created = " ".join(stages()["base"].lines)
    for name in OURS:
        assert f"USER {user}" in history(build(name)["target"])
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
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+", described["image"]) or service in OURS, "an image without a version"


def test_connections_may_end_before_the_sidecar_is_killed() -> None:
    relay = sidecar_settings().relay
    assert (
        float(SERVICES["sidecar"]["stop_grace_period"].removesuffix("s")) > relay.drain_delay + relay.shutdown_timeout
    )


def test_the_job_is_built_and_run_only_when_it_is_asked_for() -> None:
    assert SERVICES["refresh"]["profiles"] == ["refresh"]
    assert "--watch" in SERVICES["refresh"]["command"]


def test_the_executor_is_compiled_into_a_volume() -> None:
    [cache] = [line for line in history("refresh") if line.startswith("ENV XDG_CACHE_HOME=")]
    volume, _, writable = place("refresh", cache.partition("=")[2])
    assert volume in COMPOSE["volumes"]
    assert writable


@pytest.mark.parametrize("service", OURS)
def test_an_image_is_built_from_what_is_there(service: str) -> None:
    how = build(service)
    assert ROOT / how["context"] / how["dockerfile"] == DOCKERFILE
    assert how["target"] in stages()
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
