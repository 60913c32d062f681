"""ConfigMaps that the operator writes."""

from collections.abc import Mapping
from typing import Any

from derops_operator.resources.objects import MANAGED_BY


def own_config_map(namespace: str, name: str, data: Mapping[str, str]) -> dict[str, Any]:
    """Return a ConfigMap of the operator's; GitOps tools are told that it is none of theirs."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**MANAGED_BY, "app.kubernetes.io/name": "derops"},
            "annotations": {
                "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
                "argocd.argoproj.io/sync-options": "Prune=false",
                "kustomize.toolkit.fluxcd.io/prune": "disabled",
            },
        },
        "data": dict(data),
    }
