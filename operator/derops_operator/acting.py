"""Carrying out what was decided: the calls to Kubernetes that are not status of our own kinds."""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from derops_operator.cache import Cache
from derops_operator.events import EventWriter
from derops_operator.facts import Asset, Certificate, Dispatch, Key, Kind, Request
from derops_operator.instants import format_second
from derops_operator.kube import GoneError, Kube
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

_log = structlog.get_logger("acting")

Take = Callable[[Kind, Mapping[str, Any]], None]


class Actor:
    """Does one action at a time and takes what the API server answers."""

    def __init__(
        self,
        kube: Kube,
        events: EventWriter,
        cache: Cache,
        take: Take,
        now_us: Callable[[], int],
    ) -> None:
        self._kube = kube
        self._events = events
        self._cache = cache
        self._take = take
        self._now_us = now_us

    async def act_on_dispatch(self, key: Key, action: DispatchAction) -> None:
        """Do one action on a Dispatch; what goes to the gateways is not done here."""
        dispatch = self._cache.dispatch(key.namespace, key.name)
        if dispatch is None:
            return
        if isinstance(action, AddFinalizer | RemoveFinalizer):
            await self._finalize(Kind.DISPATCH, dispatch, action)
        elif isinstance(action, Delete):
            await self._kube.delete(Kind.DISPATCH, dispatch.meta)
            _log.info("dispatch.deleted", namespace=key.namespace, name=key.name, why="ttl")
        elif not isinstance(action, Settle):
            raise TypeError(f"{type(action).__name__} is not for Kubernetes")

    async def act_on_asset(self, key: Key, action: AssetAction) -> None:
        """Do one action on a DERAsset or its Certificate."""
        asset = self._cache.asset(key.namespace, key.name)
        if asset is None:
            return
        if isinstance(action, AddFinalizer | RemoveFinalizer):
            await self._finalize(Kind.ASSET, asset, action)
        elif isinstance(action, ApplyCertificate):
            self._take(Kind.CERTIFICATE, await self._kube.apply(Kind.CERTIFICATE, action.manifest))
        elif isinstance(action, ReadCertificate):
            await self._read_certificate(key.namespace, action.name)
        elif isinstance(action, Reissue):
            await self._reissue(key.namespace, action.name)
        elif isinstance(action, Warn):
            self._events.post(
                Kind.ASSET, asset.meta, warning=True, reason=REVERT_UNKNOWN, note=action.message
            )
        else:
            await self._answer(key.namespace, asset, action)

    async def _finalize(
        self, kind: Kind, fact: Asset | Dispatch, action: AddFinalizer | RemoveFinalizer
    ) -> None:
        present = isinstance(action, AddFinalizer)
        if fact.meta.holds_finalizer == present:
            return
        manifest = await self._kube.set_finalizer(kind, fact.meta, present=present)
        if isinstance(action, RemoveFinalizer) and action.warning:
            self._events.post(
                kind, fact.meta, warning=True, reason=REVERT_UNKNOWN, note=action.warning
            )
        self._take(kind, manifest)

    async def _read_certificate(self, namespace: str, name: str) -> None:
        try:
            self._take(Kind.CERTIFICATE, await self._kube.read(Kind.CERTIFICATE, namespace, name))
        except GoneError:
            self._cache.drop(Key(Kind.CERTIFICATE, namespace, name))

    async def _reissue(self, namespace: str, name: str) -> None:
        certificate = self._cache.certificate(namespace, name)
        if certificate is None or certificate.is_true("Issuing"):
            return
        issuing = {
            "type": "Issuing",
            "status": "True",
            "reason": "LedgerEmpty",
            "message": "the identity ledger does not know the certificate in the Secret",
            "lastTransitionTime": format_second(self._now_us()),
            "observedGeneration": certificate.meta.generation,
        }
        await self._patch_conditions(Kind.CERTIFICATE, certificate, issuing)
        _log.info("certificate.reissued", namespace=namespace, name=name)

    async def _answer(self, namespace: str, asset: Asset, action: Approve | Deny) -> None:
        request = self._cache.fact(Key(Kind.REQUEST, namespace, action.request))
        if not isinstance(request, Request):
            return
        denied = isinstance(action, Deny)
        message = action.message if isinstance(action, Deny) else "the request is for this asset"
        answer = {
            "type": "Denied" if denied else "Approved",
            "status": "True",
            "reason": "derops.io",
            "message": message,
            "lastTransitionTime": format_second(self._now_us()),
        }
        await self._patch_conditions(Kind.REQUEST, request, answer)
        _log.info(
            "request.denied" if denied else "request.approved",
            namespace=namespace,
            name=action.request,
            message=message,
        )
        if denied:
            self._events.post(
                Kind.ASSET, asset.meta, warning=True, reason="CertificateDenied", note=message
            )

    async def _patch_conditions(
        self, kind: Kind, fact: Certificate | Request, condition: Mapping[str, Any]
    ) -> None:
        others = [each for each in fact.conditions if each.get("type") != condition["type"]]
        patch = {"conditions": [*others, condition]}
        self._take(kind, await self._kube.patch_status(kind, fact.meta, patch))
