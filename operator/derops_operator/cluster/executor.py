"""What was decided, carried out: all calls to Kubernetes but for the status of our own kinds."""

from collections.abc import Callable, Mapping
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.ports import Api
from derops_operator.reconciling.actions import (
    REVERT_UNKNOWN,
    AddFinalizer,
    ApplyCertificate,
    Approve,
    AssetAction,
    Delete,
    Deny,
    DispatchAction,
    ReadCertificate,
    Reissue,
    RemoveFinalizer,
    Settle,
    Warn,
)
from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Certificate, Request
from derops_operator.resources.instants import format_second
from derops_operator.resources.objects import Kind, Meta, ObjectKey

_log = structlog.get_logger("acting")

Take = Callable[[Kind, Mapping[str, Any]], None]


class Executor:
    """Does one action at a time and takes what the API server answers."""

    def __init__(
        self,
        api: Api,
        events: EventWriter,
        cache: Cache,
        take: Take,
        drop: Callable[[ObjectKey], None],
        now_us: Callable[[], int],
    ) -> None:
        self._api = api
        self._events = events
        self._cache = cache
        self._take = take
        self._drop = drop
        self._now_us = now_us

    async def act_on_dispatch(self, key: ObjectKey, action: DispatchAction) -> None:
        """Do one action on a Dispatch; what goes to the gateways is not done here."""
        dispatch = self._cache.dispatch(key.namespace, key.name)
        if dispatch is None:
            return
        if isinstance(action, AddFinalizer | RemoveFinalizer):
            await self.finalize(Kind.DISPATCH, dispatch.meta, action)
        elif isinstance(action, Delete):
            await self._api.delete(Kind.DISPATCH, dispatch.meta)
            _log.info("dispatch.deleted", **dispatch.log_fields, why="ttl")
        elif not isinstance(action, Settle):
            raise TypeError(f"{type(action).__name__} is not for Kubernetes")

    async def act_on_asset(self, key: ObjectKey, action: AssetAction) -> None:
        """Do one action on a DERAsset or its Certificate."""
        asset = self._cache.asset(key.namespace, key.name)
        if asset is None:
            return
        if isinstance(action, AddFinalizer | RemoveFinalizer):
            await self.finalize(Kind.ASSET, asset.meta, action)
        elif isinstance(action, ApplyCertificate):
            self._take(Kind.CERTIFICATE, await self._api.apply(Kind.CERTIFICATE, action.manifest))
        elif isinstance(action, ReadCertificate):
            await self._read_anew(ObjectKey(Kind.CERTIFICATE, key.namespace, action.name))
        elif isinstance(action, Reissue):
            await self.reissue(key.namespace, action.name)
        elif isinstance(action, Warn):
            self._events.post(
                Kind.ASSET, asset.meta, warning=True, reason=REVERT_UNKNOWN, note=action.message
            )
        else:
            await self._answer(key.namespace, asset, action)

    async def finalize(
        self, kind: Kind, meta: Meta, action: AddFinalizer | RemoveFinalizer
    ) -> None:
        """Hold an object or let go of it, unless that is so already."""
        present = isinstance(action, AddFinalizer)
        if meta.holds_finalizer == present:
            return
        manifest = await self._api.set_finalizer(kind, meta, present=present)
        if isinstance(action, RemoveFinalizer) and action.warning:
            self._events.post(kind, meta, warning=True, reason=REVERT_UNKNOWN, note=action.warning)
        self._take(kind, manifest)

    async def _read_anew(self, key: ObjectKey) -> None:
        try:
            self._take(key.kind, await self._api.read(key.kind, key.namespace, key.name))
        except GoneError:
            self._drop(key)

    async def approve(self, request: Request, message: str) -> None:
        """Let the issuer sign a request that is no asset's."""
        approval = self._answer_of("Approved", message)
        if await self._patch_conditions(Kind.REQUEST, request, approval):
            _log.info(
                "certificate_request.approved",
                namespace=request.meta.namespace,
                name=request.meta.name,
                why=message,
            )

    async def reissue(
        self,
        namespace: str,
        name: str,
        reason: str = "LedgerEmpty",
        message: str = "the identity ledger does not know the certificate in the Secret",
    ) -> None:
        """Have cert-manager issue a Certificate again, unless it is at it."""
        certificate = self._cache.certificate(namespace, name)
        if certificate is None or certificate.is_true("Issuing"):
            return
        issuing = {
            "type": "Issuing",
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": format_second(self._now_us()),
            "observedGeneration": certificate.meta.generation,
        }
        if await self._patch_conditions(Kind.CERTIFICATE, certificate, issuing):
            _log.info("certificate.reissued", namespace=namespace, name=name, why=message)

    async def _answer(self, namespace: str, asset: Asset, action: Approve | Deny) -> None:
        request = self._cache.fact(ObjectKey(Kind.REQUEST, namespace, action.request))
        if not isinstance(request, Request):
            return
        if isinstance(action, Deny):
            await self._deny(asset, request, action.message)
        else:
            await self.approve(request, "the request is for this asset")

    async def _deny(self, asset: Asset, request: Request, message: str) -> None:
        namespace, name = request.meta.namespace, request.meta.name
        denial = self._answer_of("Denied", message)
        try:
            if not await self._patch_conditions(Kind.REQUEST, request, denial):
                return
        except ApiException as refused:
            if not 400 <= (refused.status or 0) < 500 or refused.status == 429:
                raise
            # It is to an issuer of others: we may not answer it, and nothing waits for an answer.
            why = str(refused.reason)[:300]
            _log.warning("certificate_request.not_denied", namespace=namespace, name=name, why=why)
            return
        _log.info("certificate_request.denied", namespace=namespace, name=name, why=message)
        self._events.post(
            Kind.ASSET, asset.meta, warning=True, reason="CertificateDenied", note=message
        )

    def _answer_of(self, kind: str, message: str) -> dict[str, str]:
        return {
            "type": kind,
            "status": "True",
            "reason": "derops.io",
            "message": message,
            "lastTransitionTime": format_second(self._now_us()),
        }

    async def _patch_conditions(
        self, kind: Kind, fact: Certificate | Request, condition: Mapping[str, Any]
    ) -> bool:
        """Put a condition on an object; tell whether it was still the version that was decided on.

        Where it is gone or has changed, the work on the asset has not failed: others may change
        such objects as often as they like.
        """
        others = [each for each in fact.conditions if each.get("type") != condition["type"]]
        patch = {"conditions": [*others, condition]}
        try:
            self._take(kind, await self._api.patch_status(kind, fact.meta, patch))
        except (GoneError, ChangedMeanwhileError):
            await self._read_anew(ObjectKey(kind, fact.meta.namespace, fact.meta.name))
            return False
        return True
