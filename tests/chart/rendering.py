"""What the chart renders, by helm's own library and without a cluster."""

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from tests.stack import build, places

CHART = places.REPOSITORY / "charts" / "derops"
VARIANTS = sorted((CHART / "ci").glob("*-values.yaml"))
NAMESPACE = "derops-system"


def values_of(variant: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(variant.read_text(encoding="utf-8"))
    return values


@functools.cache
def _rendered(values: str) -> str:
    return subprocess.run(
        [
            build.binaries().controlplane, "render-chart", f"--chart={CHART}",
            "--release=derops", f"--namespace={NAMESPACE}",
            f"--kube-version={build.KUBERNETES_VERSION}", f"--values={values}",
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def rendered(values: dict[str, Any]) -> str:
    return _rendered(json.dumps(values))


def documents(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(rendered(values)) if each]


def pod_specs(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the spec of each pod, by kind and name of what makes it."""
    return {
        f"{each['kind']}/{each['metadata']['name']}": each["spec"]
        if each["kind"] == "Pod"
        else each["spec"]["template"]["spec"]
        for each in manifests
        if each["kind"] in {"Deployment", "StatefulSet", "Job", "Pod"}
    }
