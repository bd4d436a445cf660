"""What `kubectl kustomize` makes of a folder, as far as our kustomizations need it: resources, and
patches that are merged by the rules of the API."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

MERGED_BY = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
"""Lists that a patch adds to, and the field by which it finds what is there; others it replaces."""
KNOWN = {"apiVersion", "kind", "resources", "patches"}


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= KNOWN, f"{folder}: {kustomization.keys() - KNOWN}"
    objects: list[Object] = []
    for name in kustomization.get("resources", ()):
        path = (folder / name).resolve()
        objects += build(path) if path.is_dir() else documents(path)
    for patch in kustomization.get("patches", ()):
        assert patch.keys() == {"path"}
        for each in documents(folder / patch["path"]):
            objects = patched(objects, each)
    identities = [identity(each) for each in objects]
    assert len(identities) == len(set(identities)), f"{folder}: an object is there twice"
    return objects


def documents(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def identity(each: Object) -> tuple[str, str, str]:
    return each["apiVersion"], each["kind"], each["metadata"]["name"]


def patched(objects: list[Object], patch: Object) -> list[Object]:
    """The objects with one of them changed, or taken out."""
    wanted = identity(patch)
    assert wanted in map(identity, objects), f"there is no {wanted} to patch"
    if patch.get("$patch") == "delete":
        return [each for each in objects if identity(each) != wanted]
    return [merged(each, patch) if identity(each) == wanted else each for each in objects]


def merged(base: Any, patch: Any, name: str = "") -> Any:
    if isinstance(base, dict) and isinstance(patch, dict):
        both = {key: merged(base[key], patch[key], key) for key in base.keys() & patch.keys()}
        return copy.deepcopy({**base, **patch, **both})
    if isinstance(base, list) and isinstance(patch, list) and name in MERGED_BY:
        key = MERGED_BY[name]
        found = {each[key]: each for each in base}
        for each in patch:
            found[each[key]] = merged(found.get(each[key], {}), each)
        return list(found.values())
    return copy.deepcopy(patch)
