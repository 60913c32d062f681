"""What to do about one DERAsset, and what its status says."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from derops.lifecycle import Phase
from derops.schedules import SECOND_US
from derops_operator.gateways.views import LOST_AFTER_US, Connectivity, SessionView
from derops_operator.reconciling import identity
from derops_operator.reconciling.actions import AssetAction, AssetDecision, Warn
from derops_operator.reconciling.asset_conditions import connected, enrolled, readiness
from derops_operator.reconciling.certification import (
    certify,
    deny_foreign,
    next_certificate_look_us,
)
from derops_operator.reconciling.conditions import fold, status_of
from derops_operator.reconciling.data_path import data_flowing
from derops_operator.reconciling.device_conditions import device_conditions
from derops_operator.reconciling.identity import Realm
from derops_operator.reconciling.quarantine import (
    describe_cut_off,
    find_quarantine,
    is_suspected,
    quarantined,
    suspected_at,
    suspected_us,
)
from derops_operator.reconciling.release import (
    is_taken_out,
    plan_finalizer,
    release_looks_us,
    released,
)
from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Certificate, Request
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import format_instant, format_second, parse_instant

_KEPT = ("suspectedAt", "revokedBefore")


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
    holding = _holding(asset, dispatches, unread)
    uri = identity.asset_uri(asset, realm.trust_domain)
    releasing = holding if is_taken_out(asset) else []
    quarantine = find_quarantine(asset, session, now_us, releasing=bool(releasing))
    own = identity.own_requests(requests, certificate, realm.requester)
    stored = asset.identity
    if asset.quarantine and quarantine is None:
        stored = _lift(asset, own, now_us)
    was_revoked = bool(own) and not identity.not_revoked(own[:1], stored)
    own = identity.not_revoked(own, stored)
    issued = identity.trusted(own, asset, uri, realm.issuer)
    ledger = identity.next_ledger(stored, issued, session, uri, now_us)
    ledger.update({name: stored[name] for name in _KEPT if name in stored})
    actions = plan_finalizer(asset, holding, now_us, for_good=not unread)
    if asset.meta.deleting_us is None:
        actions += certify(asset, own, certificate, ledger, now_us, realm, was_revoked=was_revoked)
        actions += deny_foreign(requests, certificate, realm)
    if quarantine is not None:
        ledger["quarantine"] = quarantine
        if is_suspected(asset, session):
            ledger["suspectedAt"] = suspected_at(session)
        actions += _warn_of_cut_off(asset, quarantine, holding)
    flowing, flowing_again_us = data_flowing(asset, ledger, session, now_us)
    status = {
        "observedGeneration": asset.meta.generation,
        "identity": ledger,
        "conditions": fold(
            asset.conditions,
            [
                *readiness(asset, accepted=accepted, own=own),
                *released(asset, releasing, now_us),
                enrolled(ledger, own, now_us),
                connected(asset, session),
                *quarantined(asset, ledger),
                *device_conditions(asset.conditions, session),
                *flowing,
            ],
            asset.meta.generation,
            now_us,
        ),
        **_contact(asset, session),
        **_active(dispatches),
    }
    return AssetDecision(
        actions=tuple(actions),
        status=status,
        again_us=_next_look(
            asset,
            ledger,
            session,
            certificate,
            now_us,
            releasing=bool(releasing),
            flowing_again_us=flowing_again_us,
        ),
    )


def _holding(asset: Asset, dispatches: Iterable[Dispatch], unread: Sequence[str]) -> list[str]:
    """Return the names of the dispatches for whose sake the asset is held."""
    held = [
        each.meta.name
        for each in dispatches
        if each.in_flight or (each.is_unreverted and not each.is_of_an_earlier(asset))
    ]
    return sorted([*held, *unread])


def _lift(asset: Asset, own: Iterable[Request], now_us: int) -> Mapping[str, Any]:
    """Return the stored ledger of an asset whose quarantine is lifted, still with the quarantine.

    Who took over before a lift counts no more, whatever the quarantine was for.
    """
    lifted_us = max(now_us, suspected_us(asset.identity))
    lifted = {**asset.identity, "suspectedAt": format_instant(lifted_us)}
    return identity.revoke(lifted, own) if asset.lift_key == "Revoke" else lifted


def _warn_of_cut_off(
    asset: Asset, quarantine: Mapping[str, Any], holding: Sequence[str]
) -> list[AssetAction]:
    """Return a warning where a quarantine begins while something runs or is to run."""
    if not holding or asset.quarantine:
        return []
    return [Warn(message=describe_cut_off(quarantine["reason"], holding))]


def _contact(asset: Asset, session: SessionView) -> dict[str, Any]:
    status = asset.status
    kept = ("lastConnectedTime", "lastDisconnectedTime", "capability")
    fields = {name: status[name] for name in kept if name in status}
    was = status_of(asset.conditions, "Connected")
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


def _active(dispatches: Iterable[Dispatch]) -> dict[str, Any]:
    running = [each for each in dispatches if each.phase is Phase.ACTIVE]
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
    flowing_again_us: int | None,
) -> int | None:
    looks = [each for each in (session.device_again_us, flowing_again_us) if each is not None]
    if "previous" in ledger:
        looks.append(parse_instant(ledger["previous"]["acceptedUntil"]))
    if "current" in ledger:
        looks.append(parse_instant(ledger["current"]["notAfter"]))
    elif certificate is not None:
        looks.append(next_certificate_look_us(certificate, now_us))
    if session.link is Connectivity.UNHEARD:
        looks.append(now_us + LOST_AFTER_US)
    if releasing:
        looks += release_looks_us(asset, now_us)
    return min((look + SECOND_US // 100 for look in looks if look >= now_us), default=None)
