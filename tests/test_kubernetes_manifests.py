"""The manifests for Kubernetes: valid by the API's schemas, restricted, and true to the program."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from registry.discovery.kubernetes.api import SLICES, WORKERS
from registry.server import token_file
from registry.server.process import GONE_S
from tests.kustomizations import Object, build
from tests.support import ROOT

FOLDER = ROOT / "deploy/kubernetes"
KUSTOMIZATIONS = sorted(path.parent for path in FOLDER.rglob("kustomization.yaml"))
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest that docs/kubernetes.md names for all of it, and the newest that is known."""


def name_of(folder: Path) -> str:
    return folder.relative_to(FOLDER).as_posix()


of_every_kustomization = pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=name_of)


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """The pod of every object that makes some, by the object's name."""
    for each in objects:
        template = each.get("spec", {}).get("template")
        if template is not None:
            yield f"{each['kind']} {each['metadata']['name']}", template["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def test_there_are_the_four_that_the_docs_name() -> None:
    names = {"base", "overlays/fleet", "overlays/sidecar", "overlays/mirror"}
    assert {name_of(folder) for folder in KUSTOMIZATIONS} == names


@pytest.mark.parametrize("version", VERSIONS)
@of_every_kustomization
def test_every_object_fits_the_schema_of_the_api(folder: Path, version: str) -> None:
    objects = build(folder)
    assert objects
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("wrong", ["replica", "minReadySecond"])
def test_a_slip_would_be_found(wrong: str) -> None:
    (fleet,) = [each for each in build(FOLDER / "overlays/fleet") if each["kind"] == "Deployment"]
    fleet["spec"][wrong] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(fleet, VERSIONS[1], strict=True)


@of_every_kustomization
def test_kubectl_makes_the_same_of_it(folder: Path) -> None:
    """What the other tests look at is what a cluster gets."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = [each for each in yaml.safe_load_all(done.stdout) if each is not None]
    assert sorted(map(as_text, theirs)) == sorted(map(as_text, build(folder)))


def as_text(value: Any) -> str:
    """JSON in which lists that are found by name have one order."""
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)}: {as_text(value[key])}" for key in sorted(value))
        return f"{{{inner}}}"
    if isinstance(value, list):
        texts = [as_text(each) for each in value]
        is_named = all(isinstance(each, dict) and "name" in each for each in value)
        return f"[{', '.join(sorted(texts) if is_named else texts)}]"
    return json.dumps(value)


@of_every_kustomization
def test_pods_are_as_the_restricted_standard_asks(folder: Path) -> None:
    found = list(pods(build(folder)))
    assert found
    for _, pod in found:
        context = pod["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret", "persistentVolumeClaim"}
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["resources"]["limits"].keys() == {"memory"}


@of_every_kustomization
def test_a_pod_may_end_in_its_time_and_hears_of_no_services(folder: Path) -> None:
    for _, pod in pods(build(folder)):
        assert pod.get("terminationGracePeriodSeconds", 30) > GONE_S + 1
        assert pod["enableServiceLinks"] is False


@of_every_kustomization
def test_only_a_mirror_has_rights_and_those_that_its_errors_name(folder: Path) -> None:
    objects = build(folder)
    roles = [each for each in objects if each["kind"] in ("Role", "ClusterRole")]
    mounts = [pod["automountServiceAccountToken"] for _, pod in pods(objects)]
    if name_of(folder) != "overlays/mirror":
        assert (roles, set(mounts)) == ([], {False})
        return
    assert mounts == [True]
    (role,) = roles
    named = [yaml.safe_load(kind.rule) for kind in (WORKERS, SLICES)]
    assert role["rules"] == named


@of_every_kustomization
def test_token_files_are_mounted_as_the_service_takes_them(folder: Path, tmp_path: Path) -> None:
    for _, pod in pods(build(folder)):
        for volume in pod["volumes"]:
            if "secret" in volume:
                token_file.check_mode(tmp_path, stat.S_IFREG | volume["secret"]["defaultMode"])
                assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


@of_every_kustomization
def test_what_is_mounted_selected_and_referred_to_is_there(folder: Path) -> None:
    objects = build(folder)
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in objects
        if "template" in each.get("spec", {})
    ]
    for each in objects:
        spec = each.get("spec", {})
        for selector in (spec.get("podSelector"), spec.get("selector")):
            if selector:
                assert selector.get("matchLabels", selector) in labels, each["metadata"]
    accounts = {each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount"}
    for _, pod in pods(objects):
        assert {pod.get("serviceAccountName")} - {None} <= accounts
        volumes = {volume["name"] for volume in pod["volumes"]} | {"data"}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports


def test_a_fleet_keeps_to_many_replicas_and_one_on_sqlite_to_itself() -> None:
    base = {each["kind"]: each for each in build(FOLDER / "base")}
    assert base["StatefulSet"]["spec"]["replicas"] == 1
    (claim,) = base["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    fleet = {each["kind"]: each for each in build(FOLDER / "overlays/fleet")}
    assert "StatefulSet" not in fleet
    assert fleet["Deployment"]["spec"]["replicas"] == 3
    spread = fleet["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    assert fleet["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
