"""Our Helm chart, rendered without helm: what is tested is what will be installed."""

import functools
import json
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml
from tests.stack import build, places

CHART = places.REPOSITORY / "charts" / "derops"
NAMESPACE = "derops-system"
_SOURCE = "# Source: derops/templates/"


def documents(values: Mapping[str, Any], template: str | None = None) -> list[dict[str, Any]]:
    """Return what the chart renders, of all templates or of one."""
    found = []
    for part in rendered(values).split("---\n" + _SOURCE)[1:]:
        name, _, text = part.partition("\n")
        if template in (None, name):
            found += [each for each in yaml.safe_load_all(text) if each]
    return found


def rendered(values: Mapping[str, Any]) -> str:
    """Return the manifests for these values."""
    return _rendered(json.dumps(values))


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
