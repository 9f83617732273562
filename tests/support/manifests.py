"""config/k8s as kustomize would put it together, without kustomize: resources, and settings files by ConfigMap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tests.test_architecture import ROOT

DIRECTORY: Final = ROOT / "config" / "k8s"
KUSTOMIZATION: Final[dict[str, Any]] = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())


def resources() -> list[dict[str, Any]]:
    """All objects, as they stand in the files."""
    return [
        found for name in KUSTOMIZATION["resources"] for found in yaml.safe_load_all((DIRECTORY / name).read_text())
    ]


def config_maps() -> dict[str, dict[str, Path]]:
    """Name of a ConfigMap -> key -> the file that it is made of."""
    return {
        one["name"]: {Path(file).name: DIRECTORY / file for file in one["files"]}
        for one in KUSTOMIZATION["configMapGenerator"]
    }


class Pod(NamedTuple):
    """The template of a workload's pods."""

    workload: str
    labels: Mapping[str, str]
    spec: dict[str, Any]
    #: Names of volumes that the workload itself claims for each pod.
    claimed: tuple[str, ...]

    def containers(self) -> Iterator[dict[str, Any]]:
        """In the order in which they start."""
        yield from self.spec.get("initContainers", ())
        yield from self.spec["containers"]

    def container(self, name: str) -> dict[str, Any]:
        """By name."""
        [found] = [one for one in self.containers() if one["name"] == name]
        return found

    def mounted(self, container: str, path: str) -> tuple[dict[str, Any], str]:
        """The volume that a path of a container lies in, and the path below it."""
        for mount in self.container(container)["volumeMounts"]:
            if path == mount["mountPath"] or path.startswith(mount["mountPath"] + "/"):
                [volume] = [one for one in self.spec["volumes"] if one["name"] == mount["name"]]
                return volume | {"mount": mount}, path.removeprefix(mount["mountPath"]).lstrip("/")
        raise AssertionError(f"{container}: nothing is mounted for {path}")

    def file(self, container: str, path: str) -> Path:
        """The file of the repository that a path of a container shows."""
        volume, below = self.mounted(container, path)
        [key] = [item["key"] for item in volume["configMap"]["items"] if item["path"] == below]
        return config_maps()[volume["configMap"]["name"]][key]


def pods() -> dict[str, Pod]:
    """By the workload's name."""
    found = {}
    for one in resources():
        name, spec = one["metadata"]["name"], one.get("spec", {})
        job = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in job:
            template = job["template"]
            claimed = tuple(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ()))
            found[name] = Pod(name, template["metadata"]["labels"], template["spec"], claimed)
    return found


def quantity(text: str) -> float:
    """Bytes or cores."""
    for unit, factor in (("Ki", 2**10), ("Mi", 2**20), ("Gi", 2**30), ("m", 1e-3)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
