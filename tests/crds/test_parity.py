"""The typed models have the fields of the CRDs: names, what is required, choices and defaults."""

from typing import Any

import pytest
from pydantic import BaseModel
from tests.crds.manifests import Manifest, schema

from derops.lifecycle import Phase
from derops.resources import DERAsset, Dispatch

MODELS: dict[str, type[BaseModel]] = {"DERAsset": DERAsset, "Dispatch": Dispatch}
PARTS = ("spec", "status")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_has_the_fields_of_its_crd(kind: str, part: str) -> None:
    model = MODELS[kind].model_json_schema(by_alias=True)

    ours = outline(model["properties"][part], model["$defs"])
    theirs = outline(schema(kind)["properties"][part], {})

    assert ours == theirs


def test_the_phases_of_the_crd_are_those_of_the_kernel() -> None:
    phases = schema("Dispatch")["properties"]["status"]["properties"]["phase"]

    assert phases["enum"] == [str(phase) for phase in Phase]


def outline(node: Manifest, known: Manifest, path: str = "") -> dict[str, Any]:
    """Return path -> (type, required, choices, default) of each field below a schema node."""
    node = resolved(node, known)
    if "items" in node:
        return outline(node["items"], known, f"{path}[]")
    found: dict[str, Any] = {}
    for name, inner in node.get("properties", {}).items():
        field, where = resolved(inner, known), f"{path}.{name}"
        found[where] = {
            "type": field["type"],
            "required": name in node.get("required", ()),
            "choices": choices(field),
            "default": default(field),
        }
        found |= outline(field, known, where)
    return found


def resolved(node: Manifest, known: Manifest) -> Manifest:
    """Return a node without references, and without the null that an absent field is to pydantic.

    What stands beside a reference, as a default does, stays.
    """
    beside = {name: value for name, value in node.items() if name not in ("$ref", "anyOf")}
    if "anyOf" in node:
        (inner,) = [each for each in node["anyOf"] if each != {"type": "null"}]
        return resolved(inner, known) | beside
    if "$ref" in node:
        return resolved(known[node["$ref"].rpartition("/")[2]], known) | beside
    return node


def choices(field: Manifest) -> list[str]:
    return sorted(field.get("enum", [field["const"]] if "const" in field else []))


def default(field: Manifest) -> Any:
    """Return the default of a leaf; for an object only the leaves' defaults count."""
    return None if field["type"] in ("object", "array") else field.get("default")
