"""The ConfigMaps by which an authority is told: how they should be, are read and are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derops_operator.cluster.client import GoneError, Kube
from derops_operator.resources.config_maps import own_config_map
from derops_operator.resources.objects import MANAGED_BY

SERVER_CA, AGENT_CA = "derops-server-ca", "derops-agent-ca"
"""Names of the ConfigMaps; both have one key."""

KEY = "ca.crt"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldConfigMap:
    """A ConfigMap as it was last seen."""

    uid: str
    ours: bool
    """Whether our label is on it."""

    pem: str
    """Empty where it holds anything else than one certificate file."""

    mendable: bool
    """Whether an apply brings it in line; else it must go first."""


def wanted_config_map(namespace: str, name: str, pem: str) -> dict[str, Any]:
    """Return a ConfigMap as it should be."""
    return own_config_map(namespace, name, {KEY: pem})


def read_held(manifest: Mapping[str, Any]) -> HeldConfigMap:
    """Read a ConfigMap of one of our names; anybody may have written it."""
    metadata, data = manifest["metadata"], manifest.get("data") or {}
    labels = metadata.get("labels") or {}
    alone = set(data) <= {KEY} and not manifest.get("binaryData")
    return HeldConfigMap(
        uid=str(metadata["uid"]),
        ours=all(labels.get(name) == value for name, value in MANAGED_BY.items()),
        pem=str(data.get(KEY, "")) if alone else "",
        mendable=alone and not manifest.get("immutable", False),
    )


class TrustConfigMaps:
    """Those ConfigMaps at the API server. What fails there is raised."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def read(self, namespace: str, name: str) -> HeldConfigMap | None:
        """Return a ConfigMap; None = there is none."""
        try:
            return read_held(await self._kube.read_config_map(namespace, name))
        except GoneError:
            return None

    async def read_all(self, name: str) -> dict[str, HeldConfigMap]:
        """Return the ConfigMaps of one name, by namespace."""
        return {
            str(manifest["metadata"]["namespace"]): read_held(manifest)
            async for manifest in self._kube.config_maps(name)
        }

    async def write(
        self, namespace: str, name: str, pem: str, held: HeldConfigMap | None
    ) -> HeldConfigMap:
        """Bring a ConfigMap in line; return it as it is now.

        Args:
            namespace: Of the ConfigMap.
            name: Of the ConfigMap.
            pem: What it shall hold, and nothing else.
            held: As it was last seen; None = it was not there.
        """
        if held is not None and not held.mendable:
            await self.delete(namespace, name, held)
        wanted = wanted_config_map(namespace, name, pem)
        applied = read_held(await self._kube.apply_config_map(wanted))
        if not applied.mendable:  # it was there, unseen, with more in it
            await self.delete(namespace, name, applied)
            applied = read_held(await self._kube.apply_config_map(wanted))
        return applied

    async def delete(self, namespace: str, name: str, held: HeldConfigMap) -> None:
        """Delete a ConfigMap, if it still is the one that was seen."""
        try:
            await self._kube.delete_config_map(namespace, name, held.uid)
        except GoneError:
            return
