"""Kubernetes Events: the story of an object, as ``kubectl describe`` tells it."""

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import structlog
from kubernetes.aio.client.exceptions import ApiException

from derops.errors import DeropsError
from derops.lifecycle import Phase, Reason
from derops.rates import Rates
from derops_operator import metrics
from derops_operator.cluster.client import Kube
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.reconciling.actions import REVERT_UNKNOWN
from derops_operator.reconciling.conditions import find
from derops_operator.reconciling.device_conditions import DEVICE_CONDITIONS, last_known
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch, DispatchCondition
from derops_operator.resources.instants import format_micro
from derops_operator.resources.objects import Kind, Meta

QUEUE_LIMIT = 1000
_NOTE_LIMIT = 1000
_EVENTS_PER_SECOND = 20.0
_BURST = 50.0
_API_KINDS = {
    Kind.ASSET: ("derops.io/v1alpha1", "DERAsset"),
    Kind.DISPATCH: ("derops.io/v1alpha1", "Dispatch"),
    Kind.REQUEST: ("cert-manager.io/v1", "CertificateRequest"),
    Kind.CERTIFICATE: ("cert-manager.io/v1", "Certificate"),
}
_WARNINGS = frozenset({Phase.FAILED, Phase.REJECTED, Phase.EXPIRED})
_WRONG_WHILE_ACTIVE = (
    (DispatchCondition.VERIFIED, Reason.DEVICE_OFFLINE),
    (DispatchCondition.REVERTED, Reason.REVERT_FAILED),
)

_log = structlog.get_logger("events")


class EventWriter:
    """Writes Events from a queue of its own; under pressure they are dropped: a courtesy."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._queue: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(QUEUE_LIMIT)
        self._instance = socket.gethostname()[:128]
        self._last_ns = 0
        self._device_events = Rates(per_second=1 / 300, burst=2)

    def post(self, kind: Kind, meta: Meta, *, warning: bool, reason: str, note: str) -> None:
        """Queue an Event about an object."""
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        body = event(
            kind,
            meta,
            warning=warning,
            reason=reason,
            note=note,
            instance=self._instance,
            at_ns=self._last_ns,
        )
        try:
            self._queue.put_nowait((meta.namespace, body))
        except asyncio.QueueFull:
            metrics.EVENTS_DROPPED.inc()

    def post_transitions(self, before: Dispatch, after: Dispatch) -> None:
        """Queue an Event for each step of a Dispatch that its stored status did not have yet."""
        for step in after.history:
            if step not in before.history:
                phase = Phase(step["phase"])
                warning = phase in _WARNINGS
                self.post(
                    Kind.DISPATCH,
                    after.meta,
                    warning=warning,
                    reason=step["reason"] if warning else str(phase),
                    note=f"{phase if warning else step['reason']}: {step['message']}",
                )
        for warning, reason, note in _found_out(before, after):
            self.post(Kind.DISPATCH, after.meta, warning=warning, reason=reason, note=note)
        late = after.late_report
        if late is not None and late != before.late_report:
            note = f"the agent says {late['phase']}, {late['reason']}: {late['message']}"
            self.post(Kind.DISPATCH, after.meta, warning=True, reason="LateReport", note=note)

    def post_release(self, before: Asset, after: Asset) -> None:
        """Queue an Event where an asset was taken out of service and nobody confirmed its revert.

        Of one that is being deleted, the removal of its finalizer tells.
        """
        released, was = (find(each.conditions, "Released") for each in (after, before))
        told = released.get("reason") == REVERT_UNKNOWN != was.get("reason")
        if told and not after.meta.deleting_us:
            note = f"taken out of service while {released['message']}"
            self.post(Kind.ASSET, after.meta, warning=True, reason=REVERT_UNKNOWN, note=note)

    def post_quarantine(self, before: Asset, after: Asset) -> None:
        """Queue an Event where the identity of an asset was quarantined, or that was lifted."""
        held = after.quarantine
        if held != before.quarantine:
            condition = find(after.conditions, "Quarantined")
            self.post(
                Kind.ASSET,
                after.meta,
                warning=bool(held),
                reason=condition["reason"],
                note=condition["message"],
            )

    def post_device(self, before: Asset, after: Asset) -> None:
        """Queue an Event where something begins to be wrong with a device, or is no more.

        Of each condition of an asset two at once and one in five minutes: a point may flap.
        """
        for kind in DEVICE_CONDITIONS:
            held = find(after.conditions, kind)
            was_wrong = last_known(find(before.conditions, kind)) == "True"
            begins = held.get("status") == "True" and not was_wrong
            ends = held.get("status") == "False" and was_wrong
            if not begins and not ends:
                continue
            if self._device_events.admit(f"{after.meta.uid} {kind}", time.monotonic()) is None:
                metrics.EVENTS_DROPPED.inc()
                continue
            reason, note = held["reason"], held["message"]
            self.post(Kind.ASSET, after.meta, warning=begins, reason=reason, note=note)

    def post_early_issuance(self, meta: Meta, note: str) -> None:
        """Queue an Event about a certificate that was issued early, and count it."""
        metrics.EARLY_ISSUANCES.inc()
        self.post(Kind.ASSET, meta, warning=True, reason="EarlyIssuance", note=note)

    async def run(self) -> None:
        """Write Events until cancelled."""
        bucket = TokenBucket(_EVENTS_PER_SECOND, _BURST)
        while True:
            namespace, body = await self._queue.get()
            await bucket.take()
            try:
                await self._kube.create_event(namespace, body)
            except (ApiException, DeropsError, aiohttp.ClientError, TimeoutError) as error:
                metrics.EVENTS_DROPPED.inc()
                _log.warning("event.dropped", why=str(error)[:200], reason=body["reason"])


def event(
    kind: Kind,
    meta: Meta,
    *,
    warning: bool,
    reason: str,
    note: str,
    instance: str,
    at_ns: int,
) -> dict[str, Any]:
    """Return an Event about an object, at an instant that no other Event about it has."""
    api_version, api_kind = _API_KINDS[kind]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            # kubectl sorts by a time that only Events of the old API have; their names are left.
            "name": f"{meta.name[:230]}.{at_ns:x}",
            "namespace": meta.namespace,
        },
        "eventTime": format_micro(at_ns // 1000),
        "reportingController": "derops.io/operator",
        "reportingInstance": instance,
        "action": "Dispatch" if kind is Kind.DISPATCH else "Manage",
        "type": "Warning" if warning else "Normal",
        "reason": reason[:128],
        "note": note[:_NOTE_LIMIT],
        "regarding": {
            "apiVersion": api_version,
            "kind": api_kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
    }


def _found_out(before: Dispatch, after: Dispatch) -> Iterator[tuple[bool, str, str]]:
    """Yield what is told between two transitions: a warning or not, reason and note."""
    story, missing = f"{after.phase}: {after.message}", Reason.ASSET_NOT_FOUND
    if after.phase is Phase.SUBMITTED and after.reason == missing != before.reason:
        yield False, missing, story
    if after.phase is Phase.ACTIVE:
        for condition, reason in _WRONG_WHILE_ACTIVE:
            now, was = (find(each.conditions, condition) for each in (after, before))
            if now.get("reason") == reason != was.get("reason"):
                yield True, reason, story
    match before.status_of(DispatchCondition.REVERTED), after.status_of(DispatchCondition.REVERTED):
        case "True", "False":
            yield True, "AppliedLate", story
        case "False", "True":
            yield False, "Reverted", f"{after.phase}: the device is reverted now"
