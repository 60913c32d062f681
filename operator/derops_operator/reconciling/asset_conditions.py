"""The conditions of a DERAsset that tell of its storage, its certificate and its stream."""

from typing import Any

from derops_operator.gateways.views import Connectivity, SessionView
from derops_operator.reconciling.conditions import WantedCondition, find, truth
from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Request
from derops_operator.resources.instants import format_second, parse_instant


def readiness(asset: Asset, *, accepted: bool, own: list[Request]) -> list[WantedCondition]:
    """Return Ready, Reconciling and Stalled; ``own`` are the asset's requests, newest first."""
    stored = find(asset.conditions, "Ready")
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


def enrolled(ledger: dict[str, Any], own: list[Request], now_us: int) -> WantedCondition:
    """Return whether the agent has a certificate that is good, by ``status.identity``."""
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
        "Enrolled",
        "False",
        "CertificatePending",
        "cert-manager has not issued the agent's certificate yet",
    )


def connected(asset: Asset, session: SessionView) -> WantedCondition:
    """Return whether the agent has a stream; what nobody was asked yet stays as it is stored."""
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
    stored = find(asset.conditions, "Connected")
    if not stored:
        return WantedCondition("Connected", "Unknown", "NotAsked", "no gateway has been asked yet")
    return WantedCondition(
        "Connected", stored["status"], stored["reason"], stored.get("message", "")
    )
