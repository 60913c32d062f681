"""Variants of the chart's values, and what the chart renders for them."""

from pathlib import Path
from typing import Any

import yaml
from tests.stack.chart import CHART

VARIANTS = sorted((CHART / "ci").glob("*-values.yaml"))


def values_of(variant: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(variant.read_text(encoding="utf-8"))
    return values


def pod_specs(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the spec of each pod, by kind and name of what makes it."""
    return {
        f"{each['kind']}/{each['metadata']['name']}": each["spec"]
        if each["kind"] == "Pod"
        else each["spec"]["template"]["spec"]
        for each in manifests
        if each["kind"] in {"Deployment", "StatefulSet", "Job", "Pod"}
    }
