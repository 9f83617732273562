"""config/k8s, held against Kubernetes' own schemas, the program, and each other; no cluster is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml

from capture.store.redis_url import must_be_safe
from capture.store.redis_url import parse as parse_url
from proxy import address, settings
from replay.refreshing import settings as refreshing
from tests.support.command_words import parse
from tests.support.image import history
from tests.support.manifests import DIRECTORY, KUSTOMIZATION, config_maps, pods, quantity, resources
from tests.test_architecture import ROOT

RESOURCES = resources()
PODS = pods()
CONTAINERS = [(pod, one["name"]) for pod, found in PODS.items() for one in found.containers()]
OURS = [(pod, name) for pod, name in CONTAINERS if PODS[pod].container(name)["image"].startswith("warmtap-")]
#: The first version with native sidecars on by default, and the newest one whose schemas are here.
OLDEST, NEWEST = "1.29", "1.37"
#: What TensorFlow Serving may be told: tensorflow_serving/model_servers/main.cc.
SERVING_FLAGS = {"port", "rest_api_port", "model_name", "model_base_path", "monitoring_config_file"}


def name_of(resource: dict[str, Any]) -> str:
    return f"{resource['kind']}-{resource['metadata']['name']}"


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in RESOURCES if one["kind"] == kind}


def sidecar() -> settings.Settings:
    words = PODS["ranking"].container("warmtap")["args"]
    return settings.load(PODS["ranking"].file("warmtap", str(parse(words)["config"])))


def job() -> refreshing.Settings:
    words = PODS["warmtap-refresh"].container("refresh")["args"]
    return refreshing.load(PODS["warmtap-refresh"].file("refresh", str(parse(words)["config"])))


def serving_flags() -> dict[str, str]:
    words = PODS["ranking"].container("serving")["args"]
    return dict(word.removeprefix("--").split("=", 1) for word in words)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("resource", RESOURCES, ids=name_of)
def test_kubernetes_takes_it(resource: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_a_field_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(RESOURCES[0] | {"sepc": {}}, OLDEST, strict=True)


def test_kustomize_puts_it_together() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is missing, which has kustomize built in")
    done = subprocess.run(["kubectl", "kustomize", str(DIRECTORY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    names = {one["kind"]: set() for one in rendered}
    for one in rendered:
        names[one["kind"]].add(one["metadata"]["name"])
        kubernetes_validate.validate(one, NEWEST, strict=True)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
    [made] = names.pop("ConfigMap")
    assert re.fullmatch(r"warmtap-settings-\w{10}", made)
    assert names == {kind: set(of_kind(kind)) for kind in {one["kind"] for one in RESOURCES}}
    [deployment] = [one for one in rendered if one["kind"] == "Deployment"]
    used = {one["image"] for one in deployment["spec"]["template"]["spec"]["initContainers"]}
    assert all(":" in image for image in used)


def test_it_can_be_changed_from_outside_as_the_instructions_say(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is missing, which has kustomize built in")
    [overlay] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(overlay)
    (tmp_path / "proxy.yaml").write_text("listeners: []\n")
    shutil.copytree(DIRECTORY, tmp_path / "warmtap" / "config" / "k8s")
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    assert {one["metadata"].get("namespace", one["metadata"]["name"]) for one in rendered} == {"ml"}
    [deployment] = [one for one in rendered if one["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 6
    pod = deployment["spec"]["template"]["spec"]
    assert {one["image"] for one in pod["initContainers"]} == {"images.example/warmtap-sidecar:0.1.0"}
    [made] = [one for one in rendered if one["kind"] == "ConfigMap"]
    assert made["data"]["proxy.yaml"] == "listeners: []\n"
    assert "models:" in made["data"]["refresh.yaml"]
    assert made["metadata"]["name"] in {one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one}


def test_every_file_is_named() -> None:
    listed = {
        *KUSTOMIZATION["resources"],
        *(file for one in KUSTOMIZATION["configMapGenerator"] for file in one["files"]),
    }
    there = {str(path.relative_to(DIRECTORY)) for path in DIRECTORY.rglob("*.yaml")}
    assert there - listed == {"kustomization.yaml"}


@pytest.mark.parametrize(("pod", "name"), OURS)
def test_a_container_of_ours_runs_a_command_that_exists(pod: str, name: str) -> None:
    container = PODS[pod].container(name)
    assert parse(container["args"])
    assert "command" not in container, "the image's entry point is the program"
    target = container["image"].removeprefix("warmtap-")
    assert 'ENTRYPOINT ["capture"]' in history(target)
    user = PODS[pod].spec["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in history(target)


@pytest.mark.parametrize("pod", PODS)
def test_pods_may_do_little(pod: str) -> None:
    """What the namespace enforces (Pod Security Standards, restricted), and a root file system that is read-only."""
    spec = PODS[pod].spec
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert of_kind("ServiceAccount")[spec["serviceAccountName"]]["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in PODS[pod].containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert not any("hostPort" in port for port in container.get("ports", ()))
    for volume in spec.get("volumes", ()):
        assert set(volume) - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}


@pytest.mark.parametrize("pod", PODS)
def test_what_a_pod_mounts_is_there(pod: str) -> None:
    volumes = {one["name"]: one for one in PODS[pod].spec.get("volumes", ())}
    mounted = {mount["name"] for one in PODS[pod].containers() for mount in one["volumeMounts"]}
    assert mounted == set(volumes) | set(PODS[pod].claimed)
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in of_kind("PersistentVolumeClaim")
        if "configMap" in volume:
            keys = {item["key"] for item in volume["configMap"]["items"]}
            assert keys <= set(config_maps()[volume["configMap"]["name"]])


def test_every_secret_is_told_in_the_instructions() -> None:
    """They are made by hand: no file of a repository holds one."""
    used = set(re.findall(r"(?:secretName|secretKeyRef:\n +name): (\S+)", "".join(map(str, _texts()))))
    assert used
    told = (ROOT / "docs" / "deployment.md").read_text()
    made = dict(re.findall(r"create secret generic (\S+) .*--from-literal=(\w+)=", told))
    assert set(made) == used
    for pod in PODS.values():
        for container in pod.containers():
            for one in container.get("env", ()):
                if "valueFrom" in one:
                    assert made[one["valueFrom"]["secretKeyRef"]["name"]] == one["valueFrom"]["secretKeyRef"]["key"]


def _texts() -> list[str]:
    return [(DIRECTORY / name).read_text() for name in KUSTOMIZATION["resources"]]


def test_clients_meet_the_sidecar_and_it_leads_to_the_model_server() -> None:
    pod, found = PODS["ranking"], sidecar()
    flags = serving_flags()
    assert set(flags) <= SERVING_FLAGS
    listening = {one.name: address.parse(one.listen) for one in found.listeners}
    assert {one.host for one in listening.values()} == {"0.0.0.0"}
    ports = {one["name"]: (one["port"], one["targetPort"]) for one in of_kind("Service")["ranking"]["spec"]["ports"]}
    assert ports == {name: (one.port, one.port) for name, one in listening.items()}
    upstream = {one.name: one.upstream for one in found.listeners}
    assert upstream == {"grpc": f"127.0.0.1:{flags['port']}", "rest": f"127.0.0.1:{flags['rest_api_port']}"}
    assert {one.status for one in found.listeners} == {f"http://127.0.0.1:{flags['rest_api_port']}"}
    admin = address.parse(found.admin.listen)
    declared = {port["containerPort"] for port in pod.container("warmtap")["ports"]}
    assert declared == {one.port for one in listening.values()} | {admin.port}
    assert of_kind("Service")["ranking"]["spec"]["selector"].items() <= pod.labels.items()


def test_the_sidecar_starts_before_the_model_server_and_waits_for_nothing_that_comes_later() -> None:
    pod = PODS["ranking"]
    assert [one["name"] for one in pod.containers()] == ["warmtap", "warmtap-worker", "serving"]
    assert all(one["restartPolicy"] == "Always" for one in pod.spec["initContainers"])
    port = address.parse(sidecar().admin.listen).port
    probes = {
        kind: pod.container("warmtap")[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    }
    assert {one["port"] for one in probes.values()} == {port}
    # /readyz asks the model server, which starts only when the start-up probe has succeeded.
    assert {kind: one["path"] for kind, one in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    flags = serving_flags()
    assert pod.container("serving")["startupProbe"]["httpGet"] == {
        "path": f"/v1/models/{flags['model_name']}",
        "port": int(flags["rest_api_port"]),
    }
    assert pod.container("serving")["livenessProbe"]["tcpSocket"]["port"] == int(flags["port"])


def test_the_model_server_is_there_until_the_relay_has_drained() -> None:
    pod, relay = PODS["ranking"], sidecar().relay
    assert pod.container("warmtap")["lifecycle"]["preStop"]["exec"]["command"] == ["sh", "-c", "kill -TERM 1"]
    _, seconds = pod.container("serving")["lifecycle"]["preStop"]["exec"]["command"]
    assert float(seconds) > relay.drain_delay + relay.shutdown_timeout
    assert pod.spec["terminationGracePeriodSeconds"] >= float(seconds) + 20
    assert of_kind("Deployment")["ranking"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_worker_joins_by_a_socket_that_both_containers_see() -> None:
    pod, path = PODS["ranking"], sidecar().capture.worker_socket
    connect = parse(pod.container("warmtap-worker")["args"])["connect"]
    assert connect == f"unix:{path}"
    places = [pod.mounted(name, path) for name in ("warmtap", "warmtap-worker")]
    assert all(volume["emptyDir"] == {} and below == "worker.sock" for volume, below in places)
    assert places[0][0]["name"] == places[1][0]["name"]


def test_memory_limits_hold_what_the_settings_allow() -> None:
    pod, found = PODS["ranking"], sidecar()
    limits = found.capture.limits
    # docs/limits.md, and the tap must hold a request as large as one may be.
    least = limits.open_bytes + 18 * limits.request_bytes + 256e6
    words = parse(pod.container("warmtap-worker")["args"])
    assert words["memory_bytes"] > least
    # A process in it may end; the container, and with it the pod, must not. It holds a parent of 50 MB, too.
    assert words["restart"] is True
    limit = quantity(pod.container("warmtap-worker")["resources"]["limits"]["memory"])
    assert limit > words["memory_bytes"] + 100e6
    assert found.tap.buffer_bytes >= limits.request_bytes
    # docs/operations.md: the supervisor 56 MB, the relay 44 MB and what may wait for the worker.
    held = pod.container("warmtap")["resources"]
    assert quantity(held["requests"]["memory"]) > 100e6 + found.tap.buffer_bytes
    assert quantity(held["limits"]["memory"]) > 2 * quantity(held["requests"]["memory"]) - 1
    assert "cpu" not in held["limits"], "a relay that is throttled delays requests"


def test_the_admin_port_asks_for_a_token_that_its_group_alone_may_read() -> None:
    volume, below = PODS["ranking"].mounted("warmtap", sidecar().admin.token_file)
    assert (volume["secret"]["secretName"], below) == ("warmtap-admin", "token")
    assert volume["secret"]["defaultMode"] == 0o440


def test_all_share_one_store_which_nobody_else_reaches() -> None:
    stores = {sidecar().capture.store, job().store}
    assert len(stores) == 1
    url = parse_url(stores.pop())
    [(host, port)] = url.hosts
    must_be_safe(url, (host,))
    assert [one["port"] for one in of_kind("Service")[host]["spec"]["ports"]] == [port]
    for pod, name in OURS:
        env = {one["name"]: one["value"] for one in PODS[pod].container(name)["env"]}
        volume, below = PODS[pod].mounted(name, env["WARMTAP_STORE_PASSWORD_FILE"])
        assert (volume["secret"]["secretName"], below) == ("warmtap-store", "password")
    [rule] = of_kind("NetworkPolicy")[host]["spec"]["ingress"]
    assert [one["port"] for one in rule["ports"]] == [port]
    [peer] = rule["from"]
    allowed = peer["podSelector"]["matchLabels"].items()
    clients = {pod for pod, _ in OURS}
    assert {name for name, pod in PODS.items() if allowed <= pod.labels.items()} == clients
    for name in clients:
        egress = of_kind("NetworkPolicy")[name]["spec"]["egress"]
        assert {"podSelector": {"matchLabels": {"app.kubernetes.io/name": host}}} in egress[0]["to"]
        assert egress[0]["ports"] == [{"port": port}]


def test_the_store_refuses_rather_than_forgets_and_asks_for_its_password() -> None:
    """That the server takes this command line: test_pod.py."""
    container = PODS["valkey"].container("valkey")
    [variable] = [one for one in container["env"] if one["valueFrom"]["secretKeyRef"]["name"] == "warmtap-store"]
    options = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    assert options.pop("--requirepass") == f"$({variable['name']})"
    assert (options["--maxmemory-policy"], options["--appendonly"]) == ("noeviction", "yes")
    most = quantity(options["--maxmemory"].replace("gb", "Gi"))
    assert most > sidecar().capture.limits.store_bytes
    assert quantity(container["resources"]["limits"]["memory"]) > most
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["valkey"]
    assert compose["command"][0] == container["args"][0] == "valkey-server"
    assert dict(zip(compose["command"][1::2], compose["command"][2::2], strict=True)) == options
    assert compose["image"] == container["image"]


@pytest.mark.parametrize("name", of_kind("NetworkPolicy"))
def test_a_network_policy_is_for_pods_that_exist(name: str) -> None:
    spec = of_kind("NetworkPolicy")[name]["spec"]
    assert spec["podSelector"]["matchLabels"].items() <= PODS[name].labels.items()
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_no_policy_lets_anybody_reach_the_model_server_past_the_sidecar() -> None:
    flags = serving_flags()
    ports = {one["port"] for rule in of_kind("NetworkPolicy")["ranking"]["spec"]["ingress"] for one in rule["ports"]}
    found = sidecar()
    assert ports == {address.parse(one.listen).port for one in (*found.listeners, found.admin)}
    assert not ports & {int(flags["port"]), int(flags["rest_api_port"])}


def test_the_job_publishes_where_the_model_server_reads() -> None:
    [model] = job().models
    flags = serving_flags()
    assert (model.model, model.base) == (flags["model_name"], flags["model_base_path"])
    server, _ = PODS["ranking"].mounted("serving", model.base)
    written, _ = PODS["warmtap-refresh"].mounted("refresh", model.base)
    staged, _ = PODS["warmtap-refresh"].mounted("refresh", model.staging)
    assert server["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert server["mount"]["readOnly"] is True
    assert written["persistentVolumeClaim"] == {"claimName": "models"}
    # Moved by a rename: one mount.
    assert written == staged
    assert "readOnly" not in written["mount"]
    assert not PurePosixPath(model.staging).is_relative_to(model.base)
    cron = of_kind("CronJob")["warmtap-refresh"]["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    [cache] = [line.partition("=")[2] for line in history("refresh") if line.startswith("ENV XDG_CACHE_HOME=")]
    volume, _ = PODS["warmtap-refresh"].mounted("refresh", cache)
    assert "persistentVolumeClaim" in volume, "the executor would be compiled anew each time"


def test_images_have_versions() -> None:
    given = {one["name"]: one["newTag"] for one in KUSTOMIZATION["images"]}
    for pod, name in CONTAINERS:
        image = PODS[pod].container(name)["image"]
        assert image in given or re.fullmatch(r"\S+:\d+\.\d+\.\d+", image)
    assert len(set(given.values())) == 1
