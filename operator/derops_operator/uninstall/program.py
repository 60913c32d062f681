"""``derops-operator uninstall``: the order of steps, and what a person reads of them."""

import argparse
import asyncio
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Set

from kubernetes.aio.client.exceptions import ApiException

from derops.errors import DeropsError
from derops.installation import CONFIG_MAP
from derops_operator.cluster.client import GoneError
from derops_operator.cluster.events import event
from derops_operator.reconciling.actions import REVERT_UNKNOWN
from derops_operator.resources.objects import Kind
from derops_operator.trust.config_maps import SERVER_CA
from derops_operator.uninstall.arguments import ANNOTATION, OPERATOR
from derops_operator.uninstall.cluster import (
    HEADEND,
    NEEDS,
    TRANSIENT,
    Cluster,
    ListExpiredError,
    Workload,
    explain,
)
from derops_operator.uninstall.ending import Ending, release_all, remove_written
from derops_operator.uninstall.orders import PendingDispatch, describe, is_connected

DONE, REFUSED = 0, 1

_STOP_SECONDS = 60.0
_TELL_SECONDS = 10.0
_NAMED_UNTOLD = 20

_LEFT = """\
derops is stopped, and its finalizers are gone. Left on purpose, and what removes it, if you want:
  all DERAssets and Dispatches:
    kubectl delete crd derassets.derops.io dispatches.derops.io
  the namespace, with the volume of the event log, the database and the server CA:
    kubectl delete namespace {namespace}
  the CA of the agents; without it no agent that is out there connects to a new installation:
    kubectl delete secret derops-agent-ca -n <namespace of cert-manager>
The Secrets of the agents and more: docs/how-to/uninstall.md"""


def main(arguments: argparse.Namespace) -> int:
    """Run the sub-command and return the exit code."""
    try:
        return asyncio.run(_run(arguments))
    except* (ApiException, DeropsError, *TRANSIENT) as group:
        _say(f"failed: {explain(_first(group))}")
    except* (asyncio.CancelledError, KeyboardInterrupt):
        _say("stopped in the middle: run it again, it goes on from where it is")
    return REFUSED


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def _run(arguments: argparse.Namespace) -> int:
    task = asyncio.current_task()
    if task is not None:  # process 1 of a container has no default for SIGTERM
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    cluster = await Cluster.connect()
    try:
        run = Uninstallation(
            cluster,
            namespace=arguments.namespace,
            timeout_seconds=arguments.timeout_seconds,
            forced=arguments.force,
        )
        return await run.run()
    finally:
        await cluster.close()


class Uninstallation:
    """The steps, in their order."""

    def __init__(
        self, cluster: Cluster, *, namespace: str, timeout_seconds: float, forced: bool
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._timeout_seconds = timeout_seconds
        self._forced = forced
        self._operator: Workload | None = None
        self._headend: Workload | None = None

    async def run(self) -> int:
        """Uninstall, or say why not."""
        missing = await self._cluster.missing_rights(NEEDS, self._namespace)
        if missing:
            _say("refused: this account may not do what is needed. It lacks:")
            _say_each(str(need) for need in missing)
            _say("Run it as the ServiceAccount derops-uninstall: docs/how-to/uninstall.md")
            return REFUSED
        await self._look_at_headend()
        ending = Ending(self._cluster, _now_us)
        await ending.look(stopped=self._operator is None or not self._operator.wanted)
        running = not self._what_is_off()
        self._say_plan(ending, running)
        if ending.in_the_way and not running and not self._forced:
            _say(f"refused: {self._what_is_off()}: nobody can revert these devices:")
            await self._name(ending)
            _say("Nothing was changed. Start it and run this again, or force it: give --force, or")
            self._say_how_to_force()
            return REFUSED
        await self._end(ending, running)
        return await self._finish(ending)

    async def _finish(self, ending: Ending) -> int:
        await self._name_unreverted(ending)
        if ending.in_the_way and not self._forced:
            self._say_what_to_do()
            return REFUSED
        named = {order.meta.uid for order in ending.in_the_way}
        await asyncio.gather(*(self._tell_on(order) for order in ending.in_the_way))
        if not await self._stop_for_good(named):
            return REFUSED
        failed = await self._release()
        if not await self._stays_stopped():
            return REFUSED
        if failed:
            _say_what_is_held(failed)
            return REFUSED
        await self._remove({order.meta.namespace for order in ending.in_the_way})
        _say(_LEFT.format(namespace=self._namespace))
        return DONE

    async def _stop_for_good(self, named: set[str]) -> bool:
        """Stop the operator; tell whether it stays so, and nothing but ``named`` began."""
        stopped = await self._stop() and await self._stays_stopped()
        return stopped and await self._is_still_over(named)

    async def _name_unreverted(self, ending: Ending) -> None:
        if ending.in_the_way:
            _say(f"{'forced' if self._forced else 'refused'}: these are not known to be reverted:")
            await self._name(ending)

    def _say_what_to_do(self) -> None:
        self._say_what_is_not_ready()
        _say("Nothing was removed and the operator runs on. What was cancelled stays cancelled.")
        _say("Run this again when they are reverted, or force it: give --force, or")
        self._say_how_to_force()

    async def _look_at_headend(self) -> None:
        self._operator = await self._cluster.workload(self._namespace, "deployments", OPERATOR)
        self._headend = await self._cluster.workload(self._namespace, "statefulsets", HEADEND)
        said = self._operator.annotations.get(ANNOTATION) if self._operator else None
        self._forced = self._forced or said == "Force"

    def _what_is_off(self) -> str:
        for name, workload in ((OPERATOR, self._operator), (HEADEND, self._headend)):
            if workload is None:
                return f"there is no {name} in namespace {self._namespace}"
            if not workload.wanted:
                return f"{name} in namespace {self._namespace} has 0 replicas"
        return ""

    def _say_what_is_not_ready(self) -> None:
        for name, workload in ((OPERATOR, self._operator), (HEADEND, self._headend)):
            if workload is not None and not workload.ready:
                _say(f"{name} is not ready, and nothing is reverted without it: look there first.")

    def _say_plan(self, ending: Ending, running: bool) -> None:
        _say(f"This uninstalls derops in namespace {self._namespace}: it")
        if running:
            _say(f"  ends all dispatches, of which {len(ending.open)} have not ended or are not")
            _say(f"  reverted, and waits for that, at most {self._timeout_seconds:g} s;")
        _say(f"  stops {OPERATOR}; takes the finalizers derops.io/... off all objects;")
        _say(f"  removes the ConfigMaps {SERVER_CA} of other namespaces, and {CONFIG_MAP};")
        _say("  they come again.")
        _say("It deletes no DERAsset, no Dispatch and no history.")
        if self._forced:
            _say("It is forced: it goes on where a device is not known to be reverted.")
        if ending.untold:
            _say(f"Of {len(ending.untold)} dispatches nobody knows since a day or more how they")
            _say("ended, as their status says. That keeps nobody. They are:")
            names = sorted(order.name for order in ending.untold.values())
            more = ["..."] * (len(names) > _NAMED_UNTOLD)
            _say_each([*names[:_NAMED_UNTOLD], *more])

    async def _end(self, ending: Ending, running: bool) -> None:
        if not running:
            await ending.cancel_all()
            return
        telling = asyncio.create_task(_tell_progress(ending))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await ending.run()
            _say("All dispatches have ended, and what they did is reverted.")
        except TimeoutError:
            await self._look_at_headend()
        finally:
            telling.cancel()

    async def _name(self, ending: Ending) -> None:
        connected = await self._connections()
        _say_each(
            describe(
                order,
                why=ending.problems.get(order.meta.uid, "")
                or "it was deleted meanwhile" * (order.meta.uid in ending.lost),
                connected=connected.get(f"{order.meta.namespace}/{order.asset_name}"),
            )
            for order in ending.in_the_way
        )

    async def _connections(self) -> dict[str, bool]:
        found: dict[str, bool] = {}
        while True:
            try:
                async for assets, _ in self._cluster.pages(Kind.ASSET):
                    for asset in assets:
                        metadata = asset["metadata"]
                        name = f"{metadata['namespace']}/{metadata['name']}"
                        found[name] = is_connected(asset)
                return found
            except ListExpiredError:
                continue

    async def _tell_on(self, order: PendingDispatch) -> None:
        """Write an Event on a Dispatch that is given up; a courtesy, and tried once."""
        note = f"derops was uninstalled by force: {describe(order, connected=True)}"
        body = event(
            Kind.DISPATCH,
            order.meta,
            warning=True,
            reason=REVERT_UNKNOWN,
            note=note,
            instance=socket.gethostname()[:128],
            at_ns=time.time_ns(),
        )
        try:
            await self._cluster.create_event(order.meta.namespace, body)
        except (ApiException, DeropsError, *TRANSIENT) as error:
            _say(f"  no Event on {order.name}: {explain(error)}")

    async def _stop(self) -> bool:
        if self._operator is None:
            _say(f"There is no Deployment {OPERATOR} in {self._namespace}: none is stopped.")
            return True
        _say(f"Stopping {OPERATOR}.")
        try:
            await self._cluster.scale(self._namespace, 0)
        except GoneError:
            return True
        selector = self._operator.selector
        left: dict[str, str] = {}
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                while True:
                    left, version = await self._cluster.pods(self._namespace, selector)
                    if await self._see_them_go(left, selector, version):
                        return True
        except TimeoutError:
            pass
        _say(f"These pods of {OPERATOR} are not gone after {_STOP_SECONDS:g} s:")
        _say_each(sorted(left.values()))
        if self._forced:
            return True
        await self._start_again()
        return False

    async def _stays_stopped(self) -> bool:
        now = await self._cluster.workload(self._namespace, "deployments", OPERATOR)
        if now is None or not now.wanted:
            return True
        _say(
            f"refused: somebody scaled {OPERATOR} up again meanwhile; is it a GitOps tool? "
            f"Stop that, and run this again."
        )
        return False

    async def _see_them_go(self, left: dict[str, str], selector: str, version: str) -> bool:
        if not left:
            return True
        try:
            changes = self._cluster.watch_pods(self._namespace, selector, version)
            async for kind, pod in changes:
                if kind == "DELETED":
                    left.pop(pod["metadata"]["uid"], None)
                if not left:
                    return True
        except (ListExpiredError, *TRANSIENT):
            await asyncio.sleep(1.0)
        return False

    async def _is_still_over(self, named: set[str]) -> bool:
        """Look once more, now that nobody gives anything to a gateway."""
        ending = Ending(self._cluster, _now_us)
        await ending.look(stopped=True)
        await ending.cancel_all()
        began = [order for order in ending.in_the_way if order.meta.uid not in named]
        if not began:
            return True
        _say("refused: these began while the operator was being stopped:")
        _say_each(order.name for order in began)
        await self._start_again()
        return False

    async def _start_again(self) -> None:
        wanted = self._operator.wanted if self._operator else 0
        await self._cluster.scale(self._namespace, wanted)
        _say(f"refused: {OPERATOR} has {wanted} replicas again. Nothing was removed: run it again.")

    async def _release(self) -> dict[str, str]:
        _say("Taking the finalizers off.")
        failed = await release_all(self._cluster)
        return await release_all(self._cluster) if failed else {}

    async def _remove(self, spared: Set[str]) -> None:
        """Remove what only the operator writes. What fails keeps nothing from going."""
        _say("Removing what the operator told the agents of the server CA.")
        for namespace in sorted(spared):
            _say(f"  not in {namespace}, whose agents may have to start again to end what they do")
        failed = await remove_written(self._cluster, self._namespace, spared)
        if failed:
            _say("These are still there; nothing needs them, delete them yourself:")
            _say_each(f"{name}: {why}" for name, why in sorted(failed.items()))

    def _say_how_to_force(self) -> None:
        _say(f"  kubectl annotate deployment {OPERATOR} -n {self._namespace} {ANNOTATION}=Force")


async def _tell_progress(ending: Ending) -> None:
    while True:
        await asyncio.sleep(_TELL_SECONDS)
        if ending.open:
            first = min(order.name for order in ending.open.values())
            _say(f"waiting for {len(ending.open)} dispatches, {first} for one")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _say_what_is_held(failed: Mapping[str, str]) -> None:
    _say("failed: the finalizers of these objects are still there; run this again:")
    _say_each(f"{name}: {why}" for name, why in sorted(failed.items()))


def _say_each(lines: Iterable[str]) -> None:
    for line in lines:
        _say(f"  {line}")


def _now_us() -> int:
    return time.time_ns() // 1000
