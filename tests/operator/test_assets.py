"""What happens to one asset: its identity, its conditions, its finalizer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.operator.certifying import (
    CERT_MANAGER,
    URI,
    answered,
    certificate,
    csr,
    end_after,
    request,
)
from tests.operator.making import asset, at, dispatch

from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2
from derops_operator.gateways.views import LOST_AFTER_US, Connectivity, SessionView
from derops_operator.reconciling.actions import (
    AddFinalizer,
    ApplyCertificate,
    Approve,
    AssetDecision,
    Deny,
    ReadCertificate,
    Reissue,
    RemoveFinalizer,
    Warn,
)
from derops_operator.reconciling.assets import reconcile_asset
from derops_operator.reconciling.identity import (
    Realm,
    certificate_name,
    early_issuance,
    wanted_certificate,
)
from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Certificate, Request
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import format_instant

REALM = Realm(trust_domain="derops.test", issuer="derops-agent", requester=CERT_MANAGER)
CLONE = SessionView(
    link=Connectivity.DISCONNECTED,
    since_us=at(10),
    end_reason="CloneSuspected",
    suspected_us=at(10),
)
OFFLINE = SessionView(link=Connectivity.DISCONNECTED)


def decide(
    subject: Asset | None = None,
    requests: Sequence[Request] = (),
    session: SessionView = OFFLINE,
    *,
    seconds: float = 1,
    accepted: bool = True,
    known: Certificate | None = None,
    dispatches: Sequence[Dispatch] = (),
    unread: Sequence[str] = (),
) -> AssetDecision:
    return reconcile_asset(
        subject or asset(),
        requests,
        session,
        accepted=accepted,
        now_us=at(seconds),
        certificate=known,
        dispatches=dispatches,
        realm=REALM,
        unread=unread,
    )


def conditions(decision: AssetDecision) -> dict[str, tuple[str, str]]:
    held = decision.status["conditions"]
    return {each["type"]: (each["status"], each["reason"]) for each in held}


def after(subject: Asset, decision: AssetDecision) -> Asset:
    return replace(subject, status=decision.status)


def online(serial: str = "", **others: Any) -> SessionView:
    return SessionView(link=Connectivity.CONNECTED, since_us=at(0), serial_number=serial, **others)


# Certificate and requests


def test_an_asset_gets_a_certificate_that_says_only_who_it_is() -> None:
    (action,) = decide().actions

    assert isinstance(action, ApplyCertificate)
    spec = action.manifest["spec"]
    assert spec["uris"] == [URI]
    assert spec["usages"] == ["client auth", "digital signature"]
    assert spec["privateKey"] == {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"}
    assert spec["secretName"] == "battery-derops-agent"
    assert "commonName" not in spec
    assert action.manifest["metadata"]["ownerReferences"][0]["uid"] == "uid-battery"


def test_the_name_of_a_certificate_is_a_dns_label_for_every_asset() -> None:
    names = {certificate_name("a" * 63), certificate_name("a" * 62 + "b"), certificate_name("a")}

    assert len(names) == 3
    assert all(len(name) <= 63 for name in names)


def test_a_certificate_that_is_as_wanted_is_left_alone() -> None:
    stored = certificate()
    spec = {**stored.spec, "duration": "720h0m0s", "renewBefore": "240h0m0s", "extra": "default"}

    actions = decide(requests=[request(serial=5)], known=replace(stored, spec=spec)).actions

    assert actions == ()


def test_a_certificate_that_somebody_changed_is_brought_in_line() -> None:
    changed = replace(certificate(), spec={**certificate().spec, "uris": ["spiffe://x/y"]})

    (action,) = decide(known=changed).actions

    assert isinstance(action, ApplyCertificate)


def test_a_request_for_exactly_this_asset_is_approved() -> None:
    assert decide(requests=[request()], known=certificate()).actions == (
        Approve(request="battery-derops-agent-1"),
    )


@pytest.mark.parametrize(
    ("subject", "word"),
    [
        (request(request=csr(x509.UniformResourceIdentifier(URI + "2"))), "names"),
        (
            request(
                request=csr(x509.UniformResourceIdentifier(URI), x509.DNSName("gateway.example"))
            ),
            "names",
        ),
        (
            request(request=csr(*[x509.UniformResourceIdentifier(URI)] * 2)),
            "names",
        ),
        (request(request=csr(x509.DNSName("battery"))), "names"),
        (request(request=csr(common_name="admin")), "subject"),
        (request(request=csr(key=ec.generate_private_key(ec.SECP384R1()))), "P-256"),
        (request(request=csr(key=rsa.generate_private_key(65537, 2048))), "P-256"),
        (request(request=csr(authority=True)), "authority"),
        (request(isCA=True), "authority"),
        (request(request=csr(extra=x509.OCSPNoCheck())), "extensions"),
        (request(usages=["client auth", "digital signature", "server auth"]), "usages"),
        (request(usages=["client auth"]), "usages"),
        (request(issuerRef={"kind": "Issuer", "name": "derops-agent"}), "Issuer derops-agent"),
        (request(request="bm90aGluZw=="), "cannot be read"),
    ],
)
def test_a_request_for_anything_else_is_denied_with_the_reason(subject: Request, word: str) -> None:
    (action,) = decide(requests=[subject], known=certificate()).actions

    assert isinstance(action, Deny)
    assert word in action.message


def test_a_broken_signature_is_denied() -> None:
    broken = request()
    assert broken.csr is not None
    forged = replace(broken, csr=replace(broken.csr, signature_valid=False))

    (action,) = decide(requests=[forged], known=certificate()).actions

    assert isinstance(action, Deny)


def test_a_request_that_another_owner_made_is_nobodys_business() -> None:
    stranger = request(owner_uid="uid-of-somebody")

    actions = decide(requests=[stranger], known=certificate(seen=1)).actions

    assert actions == (Reissue(name="battery-derops-agent"),)


@pytest.mark.parametrize("somebody", ["", "jane", "system:serviceaccount:cert-manager:webhook"])
def test_a_request_that_cert_manager_did_not_make_is_denied_and_never_trusted(
    somebody: str,
) -> None:
    genuine = request(1, serial=1)
    forged = request(9, created=60, username=somebody)

    decision = decide(requests=[genuine, forged], known=certificate())

    (action,) = decision.actions
    assert isinstance(action, Deny)
    assert action.request == "battery-derops-agent-9"
    assert (somebody or "nobody") in action.message
    assert CERT_MANAGER in action.message
    assert decision.status["identity"]["current"]["serialNumber"] == "1"
    assert conditions(decision)["Stalled"] == ("False", "Proceeding"), "the asset is well"

    issued = request(9, created=60, username=somebody, serial=9)
    decision = decide(requests=[issued], known=certificate(ready=False))
    assert decision.status["identity"] == {"uri": URI}, "approved by somebody, and trusted"
    assert decision.actions == ()


def test_what_is_the_newest_no_annotation_decides() -> None:
    """Creation, then the start of what was issued, then the number in the name."""
    high = {"cert-manager.io/certificate-revision": "9" * 5000}
    by_creation = [
        request(5, serial=5, annotations=high),
        request(1, created=1, serial=1, annotations={"cert-manager.io/certificate-name": "x"}),
    ]
    by_start = [request(5, serial=5), request(1, serial=1, issued=1)]
    by_number = [request(9, serial=9), request(10, serial=0x10), request(1, name="x", serial=1)]

    for requests, newest in ((by_creation, "1"), (by_start, "1"), (by_number, "10")):
        for order in (requests, requests[::-1]):
            ledger = decide(requests=order, known=certificate()).status["identity"]
            assert ledger["current"]["serialNumber"] == newest


def test_a_request_for_another_time_waits_without_an_answer_and_is_not_trusted() -> None:
    """A Denied would have cert-manager, which replaces it by itself, wait for an hour first."""
    stale = [request(duration=text) for text in ("1h0m0s", "nonsense", "720h0m1s")]
    issued = request(duration="2000h", serial=3)

    decision = decide(requests=[*stale, issued], known=certificate(ready=False))

    assert decision.actions == ()
    assert decision.status["identity"] == {"uri": URI}

    forged = request(request=csr(common_name="admin"), duration="1h")
    assert isinstance(decide(requests=[forged], known=certificate()).actions[0], Deny)


@pytest.mark.parametrize(
    "subject",
    [
        request(serial=7, issued_key=ec.generate_private_key(ec.SECP256R1())),
        request(serial=7, request=csr(common_name="admin")),
        request(serial=7, request="bm90aGluZw=="),
        request(serial=7, usages=["client auth"]),
        request(serial=7, issuerRef={"kind": "ClusterIssuer", "name": "another"}),
        request(
            serial=7,
            issuerRef={"kind": "ClusterIssuer", "name": "derops-agent", "group": "example.org"},
        ),
    ],
)
def test_what_was_signed_although_it_was_not_right_to_is_not_trusted(subject: Request) -> None:
    decision = decide(requests=[subject], known=certificate())

    assert decision.status["identity"] == {"uri": URI}


def test_an_empty_group_of_the_issuer_means_that_of_cert_manager() -> None:
    issuer = {"kind": "ClusterIssuer", "name": "derops-agent", "group": ""}

    assert decide(requests=[request(issuerRef=issuer)], known=certificate()).actions == (
        Approve(request="battery-derops-agent-1"),
    )


def early(*requests: Request) -> str:
    before: dict[str, Any] = {}
    for count in range(1, len(requests) + 1):
        seen = requests[:count]
        stored = replace(asset(), status={"identity": before})
        now = decide(stored, seen, known=certificate()).status["identity"]
        told = early_issuance(before, now, seen)
        before = now
    return told


@pytest.mark.parametrize(
    ("day", "told"), [(0.1, True), (18, True), (19, False), (20, False), (29, False)]
)
def test_a_certificate_that_comes_long_before_its_time_is_told(day: float, told: bool) -> None:
    seconds = day * 86400
    second = request(2, created=seconds, serial=2, issued=seconds)

    assert bool(early(request(1, serial=1), second)) == told


def test_a_certificate_of_a_changed_duration_is_not_called_early() -> None:
    """The first one was for 60 days, when the asset wanted that."""
    first = {"serialNumber": "1", "publicKeySHA256": "x", "notAfter": end_after(60)}
    second = request(2, created=60, serial=2, issued=60)
    ledger = {"current": first, "next": {**first, "serialNumber": "2"}}
    stored = {"current": first}

    old = request(1, serial=1, days=60, duration="1440h0m0s")
    assert early_issuance(stored, ledger, [old, second]) == ""
    assert early_issuance(stored, ledger, [second]), "what is not known is told"
    assert early_issuance(ledger, ledger, [second]) == "", "told twice"


def test_an_asset_is_held_by_what_cannot_be_read_however_long_it_takes() -> None:
    subject = asset(held=True, deleting=0)

    decision = decide(subject, seconds=3600, unread=["bad"])

    assert decision.actions == ()
    assert conditions(decision)["Released"] == ("False", "Releasing")
    assert AddFinalizer() in decide(unread=["bad"]).actions


def test_an_answered_request_is_not_answered_again() -> None:
    denied = answered(request(), "Denied", "no")
    decision = decide(requests=[denied], known=certificate())

    assert decision.actions == ()
    assert conditions(decision)["Enrolled"] == ("False", "CertificateDenied")
    assert conditions(decision)["Stalled"] == ("True", "CertificateDenied")


def test_an_empty_ledger_beside_a_ready_certificate_has_it_issued_again() -> None:
    looked = decide(known=certificate(seen=0), seconds=100)
    fresh = decide(known=certificate(seen=99), seconds=100)
    pending = decide(known=certificate(seen=99, ready=False), seconds=100)

    assert looked.actions == (ReadCertificate(name="battery-derops-agent"),)
    assert fresh.actions == (Reissue(name="battery-derops-agent"),)
    assert pending.actions == ()
    assert looked.again_us is not None


def test_a_ready_certificate_that_was_read_unchanged_is_issued_again() -> None:
    looked = decide(known=certificate(seen=0), seconds=600)
    assert looked.actions == (ReadCertificate(name="battery-derops-agent"),)
    assert looked.again_us is not None

    again = decide(known=certificate(seen=600), seconds=(looked.again_us - at(0)) / SECOND_US)

    assert again.actions == (Reissue(name="battery-derops-agent"),)


def test_a_certificate_that_does_not_come_is_looked_for_ever_less_often() -> None:
    waits = []
    seconds = 0.0
    while seconds < 3600:
        decision = decide(known=certificate(seen=0, ready=False), seconds=seconds)
        assert decision.again_us is not None
        waits.append((decision.again_us - at(seconds)) / 1e6)
        seconds += waits[-1]

    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(5, abs=0.1)
    assert len(waits) < 20


def test_a_restart_does_not_read_all_certificates_that_did_not_come() -> None:
    listed = decide(known=certificate(seen=600, ready=False), seconds=620)
    later = decide(known=certificate(seen=600, ready=False), seconds=901)

    assert listed.actions == ()
    assert listed.again_us is not None
    assert at(900) <= listed.again_us < at(901)
    assert later.actions == (ReadCertificate(name="battery-derops-agent"),)


# Ledger


def test_the_first_certificate_is_current_at_once() -> None:
    decision = decide(requests=[request(serial=0x0ABC)], known=certificate())

    current = decision.status["identity"]["current"]
    assert current["serialNumber"] == "abc"
    assert len(current["publicKeySHA256"]) == 64
    assert current["notAfter"] == end_after()
    assert conditions(decision)["Enrolled"] == ("True", "Issued")


def test_a_renewed_certificate_is_next_until_it_is_used() -> None:
    first, second = request(1, serial=1), request(2, serial=2)
    subject = after(asset(), decide(requests=[first], known=certificate()))

    renewed = decide(subject, [first, second], online("1"), known=certificate())
    ledger = renewed.status["identity"]
    assert (ledger["current"]["serialNumber"], ledger["next"]["serialNumber"]) == ("1", "2")

    used = decide(after(subject, renewed), [first, second], online("2"), known=certificate())
    ledger = used.status["identity"]
    assert ledger["current"]["serialNumber"] == "2"
    assert ledger["previous"]["serialNumber"] == "1"
    assert ledger["previous"]["acceptedUntil"] > end_after(0)
    assert "next" not in ledger

    subject = after(subject, used)
    kept = decide(subject, [first, second], online("2"), seconds=590, known=certificate())
    gone = decide(subject, [first, second], online("2"), seconds=602, known=certificate())
    assert "previous" in kept.status["identity"]
    assert gone.status["identity"].keys() == {"uri", "current"}
    assert kept.again_us is not None
    assert at(600) < kept.again_us < at(603)


def test_a_certificate_that_was_never_used_makes_way_for_a_newer_one() -> None:
    requests = [request(1, serial=1), request(2, serial=2)]
    first = after(asset(), decide(requests=requests[:1], known=certificate()))
    second = after(first, decide(first, requests, known=certificate()))

    third = decide(second, [*requests, request(3, serial=3)], known=certificate())

    assert third.status["identity"]["next"]["serialNumber"] == "3"
    assert third.status["identity"]["current"]["serialNumber"] == "1"


@pytest.mark.parametrize(
    "subject",
    [
        request(serial=7, approved=False),
        request(serial=7, issued_uri=URI + "-of-another"),
        request(serial=7, owner_uid="uid-of-somebody"),
    ],
)
def test_a_certificate_that_was_not_ours_to_issue_never_enters_the_ledger(
    subject: Request,
) -> None:
    decision = decide(requests=[subject], known=certificate())

    assert decision.status["identity"] == {"uri": URI}


def test_an_expired_certificate_is_said_to_be_expired() -> None:
    subject = after(asset(), decide(requests=[request(serial=1)], known=certificate()))

    decision = decide(subject, seconds=31 * 86400, known=certificate())

    assert conditions(decision)["Enrolled"] == ("False", "CertificateExpired")


# Conditions and contact


def test_ready_needs_one_gateway_and_no_agent_and_stays() -> None:
    before = decide(accepted=False)
    assert conditions(before)["Ready"] == ("False", "WaitingForGateway")
    assert conditions(before)["Reconciling"][0] == "True"

    ready = decide(after(asset(), before), accepted=True)
    assert conditions(ready)["Ready"][0] == "True"
    assert conditions(ready)["Connected"] == ("False", "NoStream")

    later = decide(after(asset(), ready), accepted=False)
    assert conditions(later)["Ready"][0] == "True"


def test_ready_is_asked_anew_for_each_generation() -> None:
    subject = after(asset(), decide())
    changed = replace(subject, meta=replace(subject.meta, generation=2))

    assert conditions(decide(changed, accepted=False))["Ready"][0] == "False"


@pytest.mark.parametrize(
    ("link", "status", "reason"),
    [
        (Connectivity.CONNECTED, "True", "StreamOpen"),
        (Connectivity.DISCONNECTED, "False", "NoStream"),
        (Connectivity.UNKNOWN, "Unknown", "ReplicaLost"),
        (Connectivity.UNHEARD, "Unknown", "NotAsked"),
    ],
)
def test_connected_says_what_is_known(link: Connectivity, status: str, reason: str) -> None:
    assert conditions(decide(session=SessionView(link=link)))["Connected"] == (status, reason)


def test_a_restarted_operator_keeps_what_it_said_until_it_has_asked() -> None:
    subject = after(asset(), decide(session=online()))

    decision = decide(subject, session=SessionView(link=Connectivity.UNHEARD))

    assert conditions(decision)["Connected"] == ("True", "StreamOpen")


def test_an_asset_of_which_no_replica_spoke_is_not_looked_at_every_few_seconds() -> None:
    decision = decide(known=certificate(seen=3600), session=SessionView(link=Connectivity.UNHEARD))

    assert decision.again_us is not None
    assert decision.again_us >= at(LOST_AFTER_US / SECOND_US)


def test_contact_times_and_capability_change_with_the_stream() -> None:
    capability = agent_pb2.Capability(modes=["LoadLimit", "ActivePower"], driver="simulated")
    connected = decide(session=online(capability=capability))
    assert connected.status["lastConnectedTime"] == end_after(0)
    assert connected.status["capability"]["modes"] == ["ActivePower", "LoadLimit"]

    subject = after(asset(), connected)
    ended = SessionView(link=Connectivity.DISCONNECTED, since_us=at(60), end_reason="Silent")
    lost = decide(subject, session=ended)
    assert lost.status["lastDisconnectedTime"] > lost.status["lastConnectedTime"]
    assert lost.status["capability"]["driver"] == "simulated"
    assert "Silent" in lost.status["conditions"][4]["message"]


def test_the_active_dispatch_is_named() -> None:
    running = dispatch("peak", submitted=True, status={"phase": "Active"})

    assert decide(dispatches=[running]).status["activeDispatch"] == "peak"
    assert "activeDispatch" not in decide(dispatches=[dispatch("peak", submitted=True)]).status


# Taking out


def test_an_asset_is_held_while_a_dispatch_is_in_flight() -> None:
    flying = dispatch(submitted=True)
    done = dispatch(submitted=True, status={"phase": "Complete"})

    assert AddFinalizer() in decide(dispatches=[flying]).actions
    assert RemoveFinalizer() in decide(asset(held=True), dispatches=[done]).actions
    assert AddFinalizer() not in decide(dispatches=[dispatch()]).actions


def test_a_deleted_asset_waits_for_its_dispatches_and_then_says_what_is_not_known() -> None:
    subject, flying = asset(held=True, deleting=0), dispatch(submitted=True)

    waiting = decide(subject, seconds=59, dispatches=[flying])
    given_up = decide(subject, seconds=61, dispatches=[flying])

    assert waiting.actions == ()
    assert conditions(waiting)["Released"] == ("False", "Releasing")
    (action,) = given_up.actions
    assert isinstance(action, RemoveFinalizer)
    assert "peak" in action.warning


def test_a_device_that_is_not_reverted_holds_its_asset_after_the_end_was_told() -> None:
    stuck = {
        "phase": "Failed",
        "conditions": [{"type": "Reverted", "status": "False"}],
        "timeline": {"submittedAt": "2027-01-15T08:00:01.000Z"},
    }
    subject, failed = asset(held=True, deleting=10), dispatch(status=stuck)

    waiting = decide(subject, seconds=69, dispatches=[failed])
    given_up = decide(subject, seconds=71, dispatches=[failed])

    assert waiting.actions == ()
    assert conditions(waiting)["Released"] == ("False", "Releasing")
    (action,) = given_up.actions
    assert isinstance(action, RemoveFinalizer)
    assert "peak" in action.warning


def test_what_an_earlier_asset_of_the_name_did_not_revert_holds_no_other() -> None:
    stuck = {
        "phase": "Failed",
        "conditions": [{"type": "Reverted", "status": "False"}],
        "timeline": {"submittedAt": "2027-01-15T07:00:00.000Z"},
    }

    assert decide(asset(held=True), dispatches=[dispatch(status=stuck)]).actions[:1] == (
        RemoveFinalizer(),
    )


def test_quarantine_begins_when_the_device_is_released() -> None:
    subject = asset(operatingState="Quarantined")
    flying = dispatch(submitted=True)

    releasing = decide(subject, dispatches=[flying])
    assert "quarantine" not in releasing.status["identity"]

    released = decide(after(subject, releasing), seconds=5)
    assert released.status["identity"]["quarantine"]["reason"] == "SetInSpec"
    assert conditions(released)["Quarantined"] == ("True", "SetInSpec")


def test_quarantine_does_not_wait_for_ever() -> None:
    subject, flying = asset(operatingState="Quarantined"), dispatch(submitted=True)
    subject = after(subject, decide(subject, seconds=1, dispatches=[flying]))

    assert "quarantine" not in decide(subject, seconds=60, dispatches=[flying]).status["identity"]
    late = decide(subject, seconds=62, dispatches=[flying])
    assert late.status["identity"]["quarantine"]["reason"] == "SetInSpec"
    (warning,) = [each for each in late.actions if isinstance(each, Warn)]
    assert "may be on the device: peak" in warning.message

    again = decide(after(subject, late), seconds=63, dispatches=[flying])
    assert not any(isinstance(each, Warn) for each in again.actions)


@pytest.mark.parametrize("state", ["OutOfService", "Quarantined"])
def test_a_device_of_an_asset_taken_out_that_nobody_confirms_is_said_not_to_be_known(
    state: str,
) -> None:
    subject, flying = asset(operatingState=state), dispatch(submitted=True)
    subject = after(subject, decide(subject, seconds=1, dispatches=[flying]))
    waiting = decide(subject, seconds=61, dispatches=[flying])
    assert conditions(waiting)["Released"] == ("False", "Releasing")
    assert waiting.again_us is not None
    assert at(62) <= waiting.again_us < at(63)

    overdue = decide(subject, seconds=62.1, dispatches=[flying])
    assert conditions(overdue)["Released"] == ("False", "RevertUnknown")

    done = decide(after(subject, overdue), seconds=70)
    assert conditions(done)["Released"] == ("True", "NothingInFlight")


def test_a_suspected_clone_is_quarantined_until_a_person_lifts_it() -> None:
    subject = after(asset(), decide(session=CLONE, seconds=11))
    assert subject.quarantine_reason == "CloneSuspected"

    for state in ("InService", "Quarantined", "InService"):
        subject = replace(subject, operating_state=state)
        subject = after(subject, decide(subject, session=OFFLINE, seconds=20))
        assert subject.quarantine_reason == "CloneSuspected"

    subject = replace(subject, lift_of_us=at(11), lift_key="Keep")
    lifted = after(subject, decide(subject, session=CLONE, seconds=40))
    assert lifted.quarantine_reason == ""
    assert after(lifted, decide(lifted, session=CLONE, seconds=50)).quarantine_reason == ""


@pytest.mark.parametrize(
    ("state", "lift", "reason"),
    [
        ("InService", None, "SetInSpec"),
        ("InService", at(10.999), "SetInSpec"),
        ("Quarantined", at(11), "SetInSpec"),
        ("InService", at(11), ""),
    ],
)
def test_only_a_lift_of_this_very_quarantine_ends_it(
    state: str, lift: int | None, reason: str
) -> None:
    subject = asset(operatingState="Quarantined")
    subject = after(subject, decide(subject, seconds=11))
    key = "Keep" if lift is not None else ""

    subject = replace(subject, operating_state=state, lift_of_us=lift, lift_key=key)

    assert after(subject, decide(subject, seconds=20)).quarantine_reason == reason


def test_a_lift_that_stays_in_the_spec_does_not_lift_the_next_quarantine() -> None:
    subject = after(asset(), decide(session=CLONE, seconds=11))
    subject = replace(subject, lift_of_us=at(11), lift_key="Keep")
    subject = after(subject, decide(subject, session=CLONE, seconds=20))
    assert subject.quarantine_reason == ""

    again = replace(CLONE, suspected_us=at(30))
    subject = after(subject, decide(subject, session=again, seconds=31))

    assert subject.quarantine_reason == "CloneSuspected"
    assert after(subject, decide(subject, session=again, seconds=32)).quarantine_reason


def test_how_a_quarantine_is_lifted_is_in_its_condition() -> None:
    decision = decide(session=CLONE, seconds=11)

    message = next(
        each["message"] for each in decision.status["conditions"] if each["type"] == "Quarantined"
    )
    at_text = decision.status["identity"]["quarantine"]["at"]
    assert f"spec.identity.lift to quarantinedAt: {at_text} and key: Keep or Revoke" in message


def test_a_kept_key_stays_in_the_ledger_and_a_revoked_one_never_comes_back() -> None:
    first = request(1, serial=1)
    subject = after(asset(), decide(requests=[first], known=certificate()))
    subject = after(subject, decide(subject, [first], CLONE, seconds=11, known=certificate()))
    subject = replace(subject, lift_of_us=at(11))

    kept = decide(replace(subject, lift_key="Keep"), [first], known=certificate(), seconds=20)
    assert kept.status["identity"]["current"]["serialNumber"] == "1"

    subject = replace(subject, lift_key="Revoke")
    revoked = decide(subject, [first], CLONE, known=certificate(seen=20), seconds=20)
    assert revoked.status["identity"].keys() == {"uri", "suspectedAt", "revokedBefore"}
    assert revoked.actions == (Reissue(name="battery-derops-agent"),)

    subject = after(subject, revoked)
    again = decide(subject, [first], CLONE, known=certificate(seen=21), seconds=21)
    assert "current" not in again.status["identity"]
    second = request(2, serial=2)
    second = replace(second, meta=replace(second.meta, created_us=at(22)))
    fresh = decide(subject, [first, second], CLONE, known=certificate(seen=23), seconds=23)
    assert fresh.status["identity"]["current"]["serialNumber"] == "2"
    assert fresh.actions == ()


def test_a_request_under_way_when_a_key_is_revoked_is_for_a_new_key() -> None:
    first, second = request(1, serial=1), request(2)
    second = replace(second, meta=replace(second.meta, created_us=at(10)))
    subject = after(asset(), decide(requests=[first], known=certificate()))
    subject = after(subject, decide(subject, [first], CLONE, seconds=11, known=certificate()))
    subject = replace(subject, lift_of_us=at(11), lift_key="Revoke")

    revoked = decide(subject, [first, second], CLONE, seconds=20, known=certificate(seen=20))

    assert revoked.actions == (Approve(request="battery-derops-agent-2"),)


def test_a_denied_request_of_before_keeps_no_revoked_key_from_being_replaced() -> None:
    denied = replace(request(1), conditions=({"type": "Denied", "status": "True"},))
    issued = request(2, serial=2)
    issued = replace(issued, meta=replace(issued.meta, created_us=at(5)))
    requests = [denied, issued]
    subject = after(asset(), decide(requests=requests, known=certificate()))
    subject = after(subject, decide(subject, requests, CLONE, seconds=11, known=certificate()))
    subject = replace(subject, lift_of_us=at(11), lift_key="Revoke")

    revoked = decide(subject, requests, CLONE, seconds=20, known=certificate(seen=20))

    assert revoked.actions == (Reissue(name="battery-derops-agent"),)


def test_who_took_over_before_any_lift_counts_no_more() -> None:
    subject = asset(operatingState="Quarantined")
    subject = after(subject, decide(subject, seconds=11))
    subject = replace(subject, operating_state="InService", lift_of_us=at(11), lift_key="Revoke")

    lifted = decide(subject, seconds=20)

    assert lifted.status["identity"]["suspectedAt"] == format_instant(at(20))


def test_nothing_is_certified_for_an_asset_that_is_going() -> None:
    going = asset(deleting=0, held=True)

    assert decide(going).actions == (RemoveFinalizer(),)
    assert wanted_certificate(going, "derops.test", "x")["metadata"]["labels"]
