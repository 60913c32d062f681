"""What to do about the Certificate of an asset, and about the requests for it."""

from collections.abc import Iterable
from typing import Any

from derops.schedules import SECOND_US
from derops_operator.reconciling import identity
from derops_operator.reconciling.actions import (
    ApplyCertificate,
    Approve,
    AssetAction,
    Deny,
    ReadCertificate,
    Reissue,
)
from derops_operator.reconciling.identity import Realm
from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Certificate, Request

_CERTIFICATE_LOOK_US = 5 * SECOND_US


def certify(
    asset: Asset,
    own: list[Request],
    certificate: Certificate | None,
    ledger: dict[str, Any],
    now_us: int,
    realm: Realm,
    *,
    was_revoked: bool,
) -> list[AssetAction]:
    """Return what brings the asset's Certificate about, and answers to cert-manager's requests.

    Args:
        asset: As last heard.
        own: Requests of cert-manager whose key was not revoked, newest first.
        certificate: As last seen, if there is one.
        ledger: ``status.identity`` as it is to be.
        now_us: The time.
        realm: Trust domain, issuer and who may ask it.
        was_revoked: Whether the key of the newest request was revoked.
    """
    wanted = identity.wanted_certificate(asset, realm.trust_domain, realm.issuer)
    if certificate is None or identity.differs(certificate, wanted):
        return [ApplyCertificate(manifest=wanted)]
    answers = _answer(own, asset, realm)
    if "current" not in ledger and (was_revoked or not own):
        return answers + _recover_ledger(certificate, now_us)
    return answers


def _answer(own: Iterable[Request], asset: Asset, realm: Realm) -> list[AssetAction]:
    """Return the answers to those requests of cert-manager that have none."""
    uri = identity.asset_uri(asset, realm.trust_domain)
    actions: list[AssetAction] = []
    for request in own:
        if _is_answered(request):
            continue
        problem = identity.refuse_to_sign(request, uri, realm.issuer)
        if problem:
            actions.append(Deny(request=request.meta.name, message=problem))
        elif identity.has_duration(request, asset):
            actions.append(Approve(request=request.meta.name))
    return actions


def _is_answered(request: Request) -> bool:
    return bool(request.condition("Approved") or request.condition("Denied"))


def deny_foreign(
    requests: Iterable[Request], certificate: Certificate | None, realm: Realm
) -> list[AssetAction]:
    """Return the denials of requests that somebody else made for the asset's Certificate."""
    return [
        Deny(request=each.meta.name, message=identity.refuse_requester(each, realm.requester))
        for each in identity.foreign_requests(requests, certificate, realm.requester)
        if not _is_answered(each)
    ]


def _recover_ledger(certificate: Certificate, now_us: int) -> list[AssetAction]:
    """Return what fills an empty ledger: a Secret of a former asset of this name has no request."""
    name = certificate.meta.name
    if now_us >= _certificate_look_us(certificate, certificate.seen_us):
        return [ReadCertificate(name=name)]
    return [Reissue(name=name)] if certificate.is_true("Ready") else []


def _certificate_look_us(certificate: Certificate, seen_us: int) -> int:
    """Return when to read one again: ever later, thousands may wait for an issuer that is away."""
    waited_us = seen_us - certificate.meta.created_us
    return seen_us + max(_CERTIFICATE_LOOK_US, waited_us // 2)


def next_certificate_look_us(certificate: Certificate, now_us: int) -> int:
    """Return when an asset without a ledger is to be looked at for its Certificate's sake."""
    due_us = _certificate_look_us(certificate, certificate.seen_us)
    if due_us > now_us:
        return due_us
    # It is being read. Found unchanged it is no news, yet one that is Ready is to be reissued then.
    if certificate.is_true("Ready"):
        return now_us + SECOND_US
    return _certificate_look_us(certificate, now_us)
