"""What to do about one DERAsset, and what its status says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from derops.lifecycle import Phase
from derops.modes import OperatingState
from derops.schedules import SECOND_US
from derops_operator.gateways.views import CLONE_SUSPECTED, LOST_AFTER_US, Connectivity, SessionView
from derops_operator.reconciling import identity
from derops_operator.reconciling.actions import (
    REVERT_UNKNOWN,
    AddFinalizer,
    ApplyCertificate,
    Approve,
    AssetAction,
    AssetDecision,
    Deny,
    ReadCertificate,
    Reissue,
    RemoveFinalizer,
    Warn,
)
from derops_operator.reconciling.conditions import WantedCondition, find, fold, status_of, truth
from derops_operator.reconciling.devices import device_conditions
from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Certificate, Request
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import format_instant, format_second, parse_instant

RELEASE_GRACE_US = 60 * SECOND_US
"""How long an asset that is taken out waits for its dispatches to be reverted."""

_CERTIFICATE_LOOK_US = 5 * SECOND_US
_SPEC_QUARANTINE = "SetInSpec"
_KEPT = ("suspectedAt", "revokedBefore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Realm:
    """What identities are made of, the same for all assets."""

    trust_domain: str
    issuer: str
    requester: str
    """Who may ask for certificates: the user that cert-manager is to the API server."""


def reconcile_asset(
    asset: Asset,
    requests: Iterable[Request],
    session: SessionView,
    *,
    accepted: bool,
    now_us: int,
    certificate: Certificate | None,
    dispatches: Sequence[Dispatch],
    realm: Realm,
    unread: Sequence[str] = (),
) -> AssetDecision:
    """Decide about one DERAsset.

    Args:
        asset: As last heard from the API server.
        requests: The CertificateRequests that name it.
        session: The stream of its agent, over all replicas.
        accepted: Some replica has stored this generation.
        now_us: The time.
        certificate: Its Certificate as last seen, if there is one.
        dispatches: All that name it.
        realm: Trust domain, issuer and who may ask it.
        unread: Names of dispatches of it that cannot be read: what they are is not known, so the
            asset is held as long as they are there.
    """
    requests = list(requests)
    in_flight = [each for each in dispatches if each.in_flight]
    unreverted = [
        each for each in dispatches if each.is_unreverted and not each.is_of_an_earlier(asset)
    ]
    holding = sorted([each.meta.name for each in in_flight + unreverted] + list(unread))
    uri = identity.asset_uri(asset, realm.trust_domain)
    stored = asset.status.get("identity", {})
    releasing = holding if _is_taken_out(asset) else []
    quarantine = _quarantine(asset, session, now_us, releasing=bool(releasing))
    own = identity.own_requests(requests, certificate, realm.requester)
    if stored.get("quarantine") and quarantine is None:
        # Who took over before a lift counts no more, whatever the quarantine was for.
        lifted_us = max(now_us, _instant(stored, "suspectedAt"))
        stored = {**stored, "suspectedAt": format_instant(lifted_us)}
        if asset.lift_key == "Revoke":
            stored = identity.revoke(stored, own)
    was_revoked = bool(own) and not identity.not_revoked(own[:1], stored)
    own = identity.not_revoked(own, stored)
    issued = identity.trusted(own, asset, uri, realm.issuer)
    ledger = identity.next_ledger(stored, issued, session, uri, now_us)
    ledger.update({name: stored[name] for name in _KEPT if name in stored})
    actions = _finalizing(asset, holding, now_us, for_good=not unread)
    if asset.meta.deleting_us is None:
        actions += _certifying(
            asset, own, certificate, ledger, now_us, realm, was_revoked=was_revoked
        )
        actions += _refusing(requests, certificate, realm)
    if quarantine is not None:
        ledger["quarantine"] = quarantine
        if _is_suspected(asset, session):
            ledger["suspectedAt"] = _suspected_at(session)
        if holding and not stored.get("quarantine"):
            actions.append(Warn(message=_cut_off(quarantine["reason"], holding)))
    status = {
        "observedGeneration": asset.meta.generation,
        "identity": ledger,
        "conditions": fold(
            asset.status.get("conditions", []),
            [
                *_readiness(asset, accepted=accepted, own=own),
                *_released(asset, releasing, now_us),
                _enrolled(ledger, own, now_us),
                _connected(asset, session),
                *_quarantined(asset, ledger),
                *device_conditions(asset.status.get("conditions", []), session),
            ],
            asset.meta.generation,
            now_us,
        ),
        **_contact(asset, session),
        **_active(in_flight),
    }
    return AssetDecision(
        actions=tuple(actions),
        status=status,
        again_us=_next_look(asset, ledger, session, certificate, now_us, releasing=bool(releasing)),
    )


_LIFTED = {
    "Keep": "spec.identity.lift says that the key may be used again",
    "Revoke": "spec.identity.lift says that the key may be stolen: cert-manager makes a new one",
}


def _is_taken_out(asset: Asset) -> bool:
    return asset.meta.deleting_us is not None or asset.operating_state != OperatingState.IN_SERVICE


def _finalizing(
    asset: Asset, holding: list[str], now_us: int, *, for_good: bool
) -> list[AssetAction]:
    holds, deleting_us = asset.meta.holds_finalizer, asset.meta.deleting_us
    if holding and not holds and deleting_us is None:
        return [AddFinalizer()]
    if not holding and holds:
        return [RemoveFinalizer()]
    if holds and for_good and deleting_us is not None and now_us > deleting_us + RELEASE_GRACE_US:
        return [RemoveFinalizer(warning=f"deleted while {_unconfirmed(holding)}")]
    return []


def _unconfirmed(holding: list[str]) -> str:
    return (
        f"these dispatches may be on the device, and the agent did not confirm within "
        f"{RELEASE_GRACE_US // SECOND_US} s: {', '.join(holding)}; "
        f"whether the device was reverted is not known"
    )


def _cut_off(reason: str, holding: list[str]) -> str:
    return (
        f"quarantined ({reason}) while these dispatches may be on the device: "
        f"{', '.join(holding)}; "
        f"the agent gets no stream, and is to revert them at their planned ends: whether it did "
        f"is not known until the quarantine is lifted"
    )


def _certifying(
    asset: Asset,
    own: list[Request],
    certificate: Certificate | None,
    ledger: dict[str, Any],
    now_us: int,
    realm: Realm,
    *,
    was_revoked: bool,
) -> list[AssetAction]:
    wanted = identity.wanted_certificate(asset, realm.trust_domain, realm.issuer)
    if certificate is None or identity.differs(certificate, wanted):
        return [ApplyCertificate(manifest=wanted)]
    uri = identity.asset_uri(asset, realm.trust_domain)
    actions: list[AssetAction] = []
    for request in own:
        if request.condition("Approved") or request.condition("Denied"):
            continue
        problem = identity.refuse_to_sign(request, uri, realm.issuer)
        if problem:
            actions.append(Deny(request=request.meta.name, message=problem))
        elif identity.has_duration(request, asset):
            actions.append(Approve(request=request.meta.name))
    if "current" not in ledger and (was_revoked or not own):
        actions += _recover_ledger(certificate, now_us)
    return actions


def _refusing(
    requests: Iterable[Request], certificate: Certificate | None, realm: Realm
) -> list[AssetAction]:
    """Return the denials of requests that somebody else made for the asset's Certificate."""
    return [
        Deny(request=each.meta.name, message=identity.refuse_requester(each, realm.requester))
        for each in identity.foreign_requests(requests, certificate, realm.requester)
        if not each.condition("Approved") and not each.condition("Denied")
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


def _next_certificate_look_us(certificate: Certificate, now_us: int) -> int:
    """Return when an asset without a ledger is to be looked at for its Certificate's sake."""
    due_us = _certificate_look_us(certificate, certificate.seen_us)
    if due_us > now_us:
        return due_us
    # It is being read. Found unchanged it is no news, yet one that is Ready is to be reissued then.
    if certificate.is_true("Ready"):
        return now_us + SECOND_US
    return _certificate_look_us(certificate, now_us)


def _quarantine(
    asset: Asset, session: SessionView, now_us: int, *, releasing: bool
) -> dict[str, Any] | None:
    """Return the quarantine of the identity; it stays until a person lifts this very one.

    One that the spec asks for begins when the device is released, or cannot be within the grace: a
    quarantined agent has no stream on which to hear of a cancel.
    """
    stored = asset.status.get("identity", {}).get("quarantine") or None
    by_spec = asset.operating_state == OperatingState.QUARANTINED
    at = format_instant(now_us)
    if _is_suspected(asset, session):
        return {"reason": CLONE_SUSPECTED, "at": at}
    if stored is not None:
        lifted = not by_spec and asset.lift_of_us == parse_instant(stored["at"])
        return None if lifted else dict(stored)
    if not by_spec or (releasing and not _is_release_overdue(asset, now_us)):
        return None
    return {"reason": _SPEC_QUARANTINE, "at": at}


def _is_suspected(asset: Asset, session: SessionView) -> bool:
    """Tell whether a gateway suspects a clone, and no quarantine has come of it yet."""
    stored = asset.status.get("identity", {})
    return session.suspected_us > _instant(stored, "suspectedAt")


def _suspected_at(session: SessionView) -> str:
    """Return the instant of a suspicion, rounded up to what status can say."""
    return format_instant(-(-session.suspected_us // 1000) * 1000)


def _instant(stored: dict[str, Any], name: str) -> int:
    return parse_instant(stored[name]) if stored.get(name) else 0


def _quarantined(asset: Asset, ledger: dict[str, Any]) -> list[WantedCondition]:
    quarantine = ledger.get("quarantine")
    if quarantine:
        at = quarantine["at"]
        words = (
            f"the agent gets no stream since {at}; to lift it, find out whether its key was copied "
            f"and set spec.identity.lift to quarantinedAt: {at} and key: Keep or Revoke"
        )
        if asset.operating_state == OperatingState.QUARANTINED:
            words += ", and spec.operatingState to InService"
        return [WantedCondition("Quarantined", "True", quarantine["reason"], words)]
    if find(asset.status.get("conditions", []), "Quarantined"):
        return [WantedCondition("Quarantined", "False", "Lifted", _LIFTED.get(asset.lift_key, ""))]
    return []


def _since(asset: Asset, condition: str, default_us: int) -> int:
    """Return since when a condition is False, else the default."""
    known = find(asset.status.get("conditions", []), condition)
    since = known.get("lastTransitionTime")
    return parse_instant(since) if since and known.get("status") == "False" else default_us


def _is_release_overdue(asset: Asset, now_us: int) -> bool:
    return now_us > _since(asset, "Released", now_us) + RELEASE_GRACE_US


def _released(asset: Asset, releasing: list[str], now_us: int) -> list[WantedCondition]:
    if releasing and _is_release_overdue(asset, now_us):
        return [WantedCondition("Released", "False", REVERT_UNKNOWN, _unconfirmed(releasing))]
    if releasing:
        return [
            WantedCondition(
                "Released", "False", "Releasing", "waiting for the device to be reverted"
            )
        ]
    if _is_taken_out(asset):
        return [WantedCondition("Released", "True", "NothingInFlight")]
    if find(asset.status.get("conditions", []), "Released"):
        return [WantedCondition("Released", "Unknown", "InService")]
    return []


def _readiness(asset: Asset, *, accepted: bool, own: list[Request]) -> list[WantedCondition]:
    stored = find(asset.status.get("conditions", []), "Ready")
    latched = (
        stored.get("status") == "True" and stored.get("observedGeneration") == asset.meta.generation
    )
    ready = accepted or latched
    waiting = "no gateway replica has stored this generation yet"
    denied = own[0].condition("Denied") if own else {}
    return [
        WantedCondition("Ready", "True", "Stored", "a gateway replica stored this generation")
        if ready
        else WantedCondition("Ready", "False", "WaitingForGateway", waiting),
        WantedCondition(
            "Reconciling", truth(not ready), "Stored" if ready else "WaitingForGateway"
        ),
        WantedCondition("Stalled", "True", "CertificateDenied", str(denied.get("message", "")))
        if denied
        else WantedCondition("Stalled", "False", "Proceeding"),
    ]


def _enrolled(ledger: dict[str, Any], own: list[Request], now_us: int) -> WantedCondition:
    current = ledger.get("current")
    if current is not None:
        if parse_instant(current["notAfter"]) > now_us:
            words = f"certificate {current['serialNumber']} is good until {current['notAfter']}"
            return WantedCondition("Enrolled", "True", "Issued", words)
        words = f"certificate {current['serialNumber']} expired at {current['notAfter']}"
        return WantedCondition("Enrolled", "False", "CertificateExpired", words)
    ready = own[0].condition("Ready") if own else {}
    denied = own[0].condition("Denied") if own else {}
    if denied:
        return WantedCondition(
            "Enrolled", "False", "CertificateDenied", str(denied.get("message", ""))
        )
    if ready.get("reason") == "Failed":
        return WantedCondition(
            "Enrolled", "False", "CertificateFailed", str(ready.get("message", ""))
        )
    return WantedCondition(
        "Enrolled", "False", "CertificatePending", "cert-manager has not issued it yet"
    )


def _connected(asset: Asset, session: SessionView) -> WantedCondition:
    if session.link is Connectivity.CONNECTED:
        since = format_second(session.since_us)
        return WantedCondition(
            "Connected", "True", "StreamOpen", f"the agent's stream is open since {since}"
        )
    if session.link is Connectivity.UNKNOWN:
        words = "the gateway replica that knows is not connected to the operator"
        return WantedCondition("Connected", "Unknown", "ReplicaLost", words)
    if session.link is Connectivity.DISCONNECTED:
        why = f" ({session.end_reason})" if session.end_reason else ""
        return WantedCondition("Connected", "False", "NoStream", f"the agent has no stream{why}")
    stored = find(asset.status.get("conditions", []), "Connected")
    if not stored:
        return WantedCondition("Connected", "Unknown", "NotAsked", "no gateway has been asked yet")
    return WantedCondition(
        "Connected", stored["status"], stored["reason"], stored.get("message", "")
    )


def _contact(asset: Asset, session: SessionView) -> dict[str, Any]:
    status = asset.status
    kept = ("lastConnectedTime", "lastDisconnectedTime", "capability")
    fields = {name: status[name] for name in kept if name in status}
    was = status_of(status.get("conditions", []), "Connected")
    if session.link is Connectivity.CONNECTED and session.since_us:
        fields["lastConnectedTime"] = format_second(session.since_us)
    if session.link is Connectivity.DISCONNECTED and session.since_us and was != "False":
        fields["lastDisconnectedTime"] = format_second(session.since_us)
    capability = session.capability
    if capability is not None and capability.modes:
        fields["capability"] = {
            "modes": sorted(capability.modes),
            "driver": capability.driver,
            "firmware": capability.firmware,
            "maxInjectionWatts": capability.max_injection_watts,
            "maxAbsorptionWatts": capability.max_absorption_watts,
        }
    return fields


def _active(in_flight: list[Dispatch]) -> dict[str, Any]:
    running = [each for each in in_flight if each.phase is Phase.ACTIVE]
    if not running:
        return {}
    best = min(running, key=lambda each: (each.primacy, -each.meta.created_us, each.meta.name))
    return {"activeDispatch": best.meta.name}


def _next_look(
    asset: Asset,
    ledger: dict[str, Any],
    session: SessionView,
    certificate: Certificate | None,
    now_us: int,
    *,
    releasing: bool,
) -> int | None:
    looks = []
    if "previous" in ledger:
        looks.append(parse_instant(ledger["previous"]["acceptedUntil"]))
    if "current" in ledger:
        looks.append(parse_instant(ledger["current"]["notAfter"]))
    elif certificate is not None:
        looks.append(_next_certificate_look_us(certificate, now_us))
    if session.link is Connectivity.UNHEARD:
        looks.append(now_us + LOST_AFTER_US)
    if session.device_again_us is not None:
        looks.append(session.device_again_us)
    if releasing:
        looks.append(_since(asset, "Released", now_us) + RELEASE_GRACE_US + SECOND_US)
    if releasing and asset.meta.deleting_us is not None:
        looks.append(asset.meta.deleting_us + RELEASE_GRACE_US)
    return min((look + SECOND_US // 100 for look in looks if look >= now_us), default=None)
