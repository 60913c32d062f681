"""Ending every Dispatch: cancel what runs or is to run, and hear what becomes of it.

Then letting go of all objects, and removing what only the operator wrote.
"""

import asyncio
from collections.abc import Awaitable, Callable, Set
from typing import Any

from kubernetes.aio.client.exceptions import ApiException

from derops.installation import CONFIG_MAP
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError, Manifest
from derops_operator.reconciling.agent_authority import TRUST_CERTIFICATE
from derops_operator.resources.objects import Kind
from derops_operator.trust.config_maps import SERVER_CA
from derops_operator.uninstall.cluster import TRANSIENT, Cluster, ListExpiredError, explain
from derops_operator.uninstall.orders import (
    Obstacle,
    PendingDispatch,
    is_to_cancel,
    read_order,
    standing,
)

_PAUSE_SECONDS = 1.0


class Ending:
    """Follows all Dispatches. Those that come in meanwhile are cancelled too."""

    def __init__(self, cluster: Cluster, now_us: Callable[[], int]) -> None:
        self._cluster = cluster
        self._now_us = now_us
        self.open: dict[str, PendingDispatch] = {}
        """What stands in the way, by uid."""

        self.untold: dict[str, PendingDispatch] = {}
        """What ended long ago and nobody knows how."""

        self.lost: dict[str, PendingDispatch] = {}
        """What was deleted before it was over: nobody will hear of it any more."""

        self.to_cancel: dict[str, PendingDispatch] = {}
        self.problems: dict[str, str] = {}
        """Why one could not be cancelled, by uid."""

        self._tried: set[str] = set()

    @property
    def in_the_way(self) -> list[PendingDispatch]:
        """All that keeps an uninstallation from going on, by name."""
        return sorted({**self.lost, **self.open}.values(), key=lambda order: order.name)

    async def look(self, *, stopped: bool = False) -> str:
        """Read all Dispatches; return the version of the list, empty = there are none."""
        while True:
            seen: set[str] = set()
            version = ""
            try:
                async for page in self._cluster.pages(Kind.DISPATCH):
                    manifests, version = page
                    for manifest in manifests:
                        seen.add(self._take(manifest, stopped=stopped))
            except ListExpiredError:
                continue
            for uid in self.open.keys() - seen:
                self._lose(self.open[uid])
            return version

    async def cancel_all(self) -> None:
        """Cancel what is to be cancelled, and wait for no more than that."""
        async with asyncio.TaskGroup() as tasks:
            self._start_cancelling(tasks)

    async def run(self) -> None:
        """Cancel all, and return when nothing is in the way. May be cancelled at any time."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    version = await self.look()
                    self._start_cancelling(tasks)
                    if not self.open:
                        return
                    async for kind, manifest in self._cluster.watch_dispatches(version):
                        self._hear(kind, manifest)
                        self._start_cancelling(tasks)
                        if not self.open:
                            return
                except (ListExpiredError, *TRANSIENT):
                    await asyncio.sleep(_PAUSE_SECONDS)

    def _hear(self, kind: str, manifest: Manifest) -> None:
        if kind == "BOOKMARK":
            return
        uid = self._take(manifest)
        if kind == "DELETED" and uid in self.open:
            self._lose(self.open[uid])
        if kind == "DELETED":
            self.to_cancel.pop(uid, None)

    def _take(self, manifest: Manifest, *, stopped: bool = False) -> str:
        order = read_order(manifest)
        uid = order.meta.uid
        stands = standing(order, self._now_us(), stopped=stopped)
        for known, kind in ((self.open, Obstacle.OPEN), (self.untold, Obstacle.UNTOLD)):
            if stands is kind:
                known[uid] = order
            else:
                known.pop(uid, None)
        if is_to_cancel(order) and uid not in self._tried:
            self.to_cancel[uid] = order
        return uid

    def _lose(self, order: PendingDispatch) -> None:
        del self.open[order.meta.uid]
        if order.given:
            self.lost[order.meta.uid] = order

    def _start_cancelling(self, tasks: asyncio.TaskGroup) -> None:
        for uid, order in self.to_cancel.items():
            self._tried.add(uid)
            tasks.create_task(self._cancel(order))
        self.to_cancel = {}

    async def _cancel(self, order: PendingDispatch) -> None:
        """Cancel one; the watch tells what became of it, and who failed keeps no other."""
        try:
            await self._cluster.cancel(order)
        except (GoneError, ChangedMeanwhileError):
            return
        except (ApiException, *TRANSIENT) as error:
            self.problems[order.meta.uid] = f"it could not be cancelled: {explain(error)}"


async def release_all(cluster: Cluster) -> dict[str, str]:
    """Take our finalizers off all objects; return why that failed, by kind and name."""
    failed: dict[str, str] = {}

    async def release(kind: Kind, manifest: dict[str, Any]) -> None:
        name = f"{kind} {manifest['metadata']['namespace']}/{manifest['metadata']['name']}"
        try:
            await cluster.release(kind, manifest)
            failed.pop(name, None)
        except (ApiException, ChangedMeanwhileError, *TRANSIENT) as error:
            failed[name] = explain(error)

    for kind in (Kind.DISPATCH, Kind.ASSET):
        complete = False
        while not complete:
            try:
                async for manifests, _ in cluster.pages(kind):
                    async with asyncio.TaskGroup() as tasks:
                        for manifest in manifests:
                            tasks.create_task(release(kind, manifest))
                complete = True
            except ListExpiredError:
                continue
    return failed


async def remove_written(cluster: Cluster, own: str, spared: Set[str]) -> dict[str, str]:
    """Remove what only the operator writes, and writes again; return what failed and why.

    What is in the namespace of derops of authorities stays, as no one else remembers them.

    Args:
        cluster: Where.
        own: The namespace of derops.
        spared: Namespaces whose agents may have to start again, to end what they hold.
    """
    failed: dict[str, str] = {}

    async def remove(name: str, step: Awaitable[None]) -> None:
        try:
            await step
        except (GoneError, ChangedMeanwhileError):
            return
        except (ApiException, *TRANSIENT) as error:
            failed[name] = explain(error)

    async def remove_config_maps() -> None:
        told = await cluster.told_namespaces()
        async with asyncio.TaskGroup() as tasks:
            for namespace in told.keys() - spared - {own}:
                step = cluster.forget_server_ca(namespace, told[namespace])
                tasks.create_task(remove(f"configmap {namespace}/{SERVER_CA}", step))

    await remove(f"configmaps {SERVER_CA}", remove_config_maps())
    certificate = f"certificate and secret {own}/{TRUST_CERTIFICATE}"
    await remove(certificate, cluster.forget_trust_certificate(own))
    await remove(f"configmap {own}/{CONFIG_MAP}", cluster.forget_installation(own))
    return failed
