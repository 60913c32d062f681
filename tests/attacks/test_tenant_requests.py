"""Who may create CertificateRequests beside an asset, and asks for its identity with an own key.

No admission policy stands before the operator here: what it refuses by itself is tested. Whoever
owns the asset must be told; what cert-manager asks for, whatever caused it, must still be signed.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.attacks.tenants import Tenant, certificate_request, signing_request
from tests.e2e.acting import battery_manifest, instant
from tests.stack import identities, places
from tests.stack.controlplane import AGENT_ISSUER, ControlPlane
from tests.stack.identities import CERT_MANAGER_USER, secret_data
from tests.stack.processes import Process
from tests.waiting import eventually

TRUST_DOMAIN = "derops.test"
NAMESPACE = "pilot"
URI = f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/derasset/battery"
CERTIFICATE = "battery-derops-agent"


class Realm:
    """A control plane with the operator program, an asset, and a tenant beside it."""

    def __init__(self, control_plane: ControlPlane, operator: Process) -> None:
        self.control_plane = control_plane
        self.operator = operator
        self.tenant = Tenant(control_plane, NAMESPACE)

    def get(self, kind: str, name: str = "") -> dict[str, Any]:
        names = [name] if name else []
        text = self.control_plane.kubectl("get", kind, *names, "-n", NAMESPACE, "-o", "json")
        found: dict[str, Any] = json.loads(text)
        return found

    def ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("derasset", "battery")["status"].get("identity", {})
        return found

    def trusted(self) -> set[str]:
        """Return the fingerprints of all keys that the ledger holds."""
        slots = (self.ledger().get(slot) for slot in ("current", "next", "previous"))
        return {each["publicKeySHA256"] for each in slots if each}

    def issued(self) -> x509.Certificate:
        """Return what cert-manager put into the Secret of the agent."""
        secret = secret_data(self.control_plane, NAMESPACE, CERTIFICATE)
        return x509.load_pem_x509_certificate(secret["tls.crt"])

    def events(self, reason: str) -> list[str]:
        """Return the notes of the asset's Events of a reason."""
        return [
            each["note"]
            for each in self.get("events.events.k8s.io")["items"]
            if (each["regarding"]["kind"], each["reason"]) == ("DERAsset", reason)
        ]

    def conditions(self, kind: str, name: str) -> dict[str, dict[str, str]]:
        found = self.get(kind, name).get("status", {}).get("conditions", [])
        return {each["type"]: each for each in found}

    def owner(self) -> dict[str, Any]:
        """Return what a request of cert-manager says of whom it belongs to."""
        return {
            "apiVersion": "cert-manager.io/v1",
            "kind": "Certificate",
            "name": CERTIFICATE,
            "uid": self.get("certificate", CERTIFICATE)["metadata"]["uid"],
            "controller": True,
        }

    def forge(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, revision: int = 999, **spec: Any
    ) -> dict[str, Any]:
        """Return a request like that of cert-manager, and newer by all that it says of itself.

        Of those it takes for its own, cert-manager deletes the lowest revisions.
        """
        annotations = {
            "cert-manager.io/certificate-name": CERTIFICATE,
            "cert-manager.io/certificate-revision": str(revision),
        }
        forged = certificate_request(
            name,
            signing_request(URI, key),
            issuer=AGENT_ISSUER,
            annotations=annotations,
            ownerReferences=[self.owner()],
        )
        forged["spec"] |= spec
        return forged

    def wait_for_ledger(self, what: str, after: str = "") -> str:
        """Wait until the ledger has what lies in the Secret, and that is new; return its serial."""

        def look() -> str:
            try:
                serial = f"{self.issued().serial_number:x}"
            except Exception:  # the Secret is being made anew
                return ""
            slots = (self.ledger().get(slot) for slot in ("current", "next"))
            known = {each["serialNumber"] for each in slots if each}
            return serial if serial in known - {after} else ""

        return eventually(look, what)

    def renew(self) -> None:
        """Do what ``cmctl renew`` does, as the policies have it done: in cert-manager's name."""
        issuing = {
            "type": "Issuing", "status": "True", "reason": "ManuallyTriggered",
            "message": "Certificate re-issuance manually triggered",
            "lastTransitionTime": instant(0),
        }  # fmt: skip
        certificate = self.get("certificate", CERTIFICATE)
        certificate["status"]["conditions"].append(issuing)
        path = f"/apis/cert-manager.io/v1/namespaces/{NAMESPACE}/certificates/{CERTIFICATE}/status"
        self.control_plane.kubectl(
            "replace", "--raw", path, "-f", "-", "--as", CERT_MANAGER_USER,
            stdin=json.dumps(certificate),
        )  # fmt: skip


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    directory = tmp_path_factory.mktemp("requests")
    with ControlPlane() as control_plane:
        issued = identities.issue(control_plane, TRUST_DOMAIN, directory)
        control_plane.kubectl(
            "delete", "validatingadmissionpolicybindings", "derops-certificaterequests"
        )
        port = places.free_port()
        settings = {
            "GATEWAYS": f"127.0.0.1:{port}",  # nobody listens: the ledger needs no gateway
            "CONTROL_TLS_DIRECTORY": issued.operator,
            "SERVER_CA_FILE": issued.server_ca,
            "TRUST_DOMAIN": TRUST_DOMAIN,
            "AGENT_ISSUER": AGENT_ISSUER,
            "OPS_ADDRESS": "127.0.0.1",
            "OPS_PORT": places.free_port(),
        }
        operator = Process(
            "operator",
            [str(Path(sys.executable).parent / "derops-operator")],
            directory=directory,
            environment={f"DEROPS_OPERATOR_{name}": str(each) for name, each in settings.items()}
            | {"KUBECONFIG": identities.program_kubeconfig(control_plane, "operator")},
        )
        operator.start()
        try:
            realm = Realm(control_plane, operator)
            battery = battery_manifest("battery")
            battery["metadata"]["namespace"] = NAMESPACE
            control_plane.apply(battery)
            yield realm
        finally:
            operator.terminate()


def fingerprint(key: ec.EllipticCurvePrivateKey) -> str:
    form = PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_key().public_bytes(Encoding.DER, form)).hexdigest()


@pytest.fixture
def serial(realm: Realm) -> str:
    """The certificate that the asset has in its Secret, and in its ledger; nothing is forged yet.

    Of an earlier attack's requests nothing is left: cert-manager would take them for the newest of
    its own, and delete what it makes.
    """
    forged = ("forged", "named", "approved", "orphan")
    realm.control_plane.kubectl(
        "delete", "certificaterequests", *forged, "-n", NAMESPACE, "--ignore-not-found"
    )
    return realm.wait_for_ledger("the first certificate")


@pytest.mark.usefixtures("serial")
def test_a_request_made_by_hand_takes_no_asset_over(realm: Realm) -> None:
    """T31: a tenant asks for the identity of an asset, in cert-manager's words, with an own key.

    It must be denied, and the asset's owner be told who asked; the asset itself is well.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    taken, answer = realm.tenant.create(realm.forge("forged", key, revision=998))
    assert taken, answer

    denied = eventually(
        lambda: realm.conditions("certificaterequest", "forged").get("Denied"), "the denial"
    )
    assert realm.tenant.user in denied["message"]
    assert CERT_MANAGER_USER in denied["message"]
    assert not realm.get("certificaterequest", "forged")["status"].get("certificate")
    eventually(lambda: realm.events("CertificateDenied"), "the Event of the asset")
    assert fingerprint(key) not in realm.trusted()
    assert realm.conditions("derasset", "battery")["Stalled"]["status"] == "False"


@pytest.mark.usefixtures("serial")
def test_who_says_to_be_cert_manager_is_not(realm: Realm) -> None:
    """T32: as T31, with ``spec.username`` filled in as cert-manager would be named.

    The webhook of cert-manager writes who it really was, or refuses; either way it is denied.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    taken, _ = realm.tenant.create(realm.forge("named", key, username=CERT_MANAGER_USER))
    if taken:
        eventually(
            lambda: "Denied" in realm.conditions("certificaterequest", "named"), "the denial"
        )
    assert fingerprint(key) not in realm.trusted()


@pytest.mark.usefixtures("serial")
def test_what_somebody_else_approved_is_not_trusted(realm: Realm) -> None:
    """T33: while the operator is away, a request made by hand is approved, and signed.

    It must never come into the ledger, though it is the newest, and signed by our own authority.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    forged = realm.forge("approved", key, revision=1000)
    realm.operator.terminate()
    assert realm.tenant.create(forged)[0]
    approved = {"type": "Approved", "status": "True", "reason": "Me", "message": "by me"}
    realm.control_plane.kubectl(
        "patch", "certificaterequest", "approved", "-n", NAMESPACE, "--subresource=status",
        "--type=merge", "-p", json.dumps({"status": {"conditions": [approved]}}),
    )  # fmt: skip
    eventually(
        lambda: realm.get("certificaterequest", "approved")["status"].get("certificate"),
        "the attack: cert-manager signs it",
    )
    before = realm.ledger()

    realm.operator.start()
    touch(realm, "looked-at")

    assert realm.ledger() == before
    assert fingerprint(key) not in realm.trusted()


@pytest.mark.usefixtures("serial")
def test_a_request_of_nobody_is_nobodys_business(realm: Realm) -> None:
    """T34: a request that names the asset in its labels, and no Certificate as its owner.

    It must have no answer, so that it is not signed, and the asset no trouble.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    forged = realm.forge("orphan", key)
    del forged["metadata"]["ownerReferences"]
    assert realm.tenant.create(forged)[0]
    touch(realm, "looked-at-again")

    assert not realm.conditions("certificaterequest", "orphan").keys() & {"Approved", "Denied"}
    assert fingerprint(key) not in realm.trusted()


def touch(realm: Realm, driver: str) -> None:
    """Have the operator look at the asset once more, and wait until it did."""
    realm.control_plane.kubectl(
        "patch", "derasset", "battery", "-n", NAMESPACE, "--type=merge",
        "-p", json.dumps({"spec": {"telemetry": {"intervalSeconds": 2 + len(driver)}}}),
    )  # fmt: skip

    def look() -> bool:
        asset = realm.get("derasset", "battery")
        seen: bool = asset["status"]["observedGeneration"] == asset["metadata"]["generation"]
        return seen

    eventually(look, "the operator to look")


def test_what_cmctl_renews_is_signed_and_told_as_early(realm: Realm, serial: str) -> None:
    realm.renew()

    new = realm.wait_for_ledger("the renewed certificate", after=serial)

    told = eventually(lambda: realm.events("EarlyIssuance"), "the Event")
    assert any(new in note for note in told)


def test_a_secret_that_was_lost_is_made_anew(realm: Realm, serial: str) -> None:
    realm.control_plane.kubectl("delete", "secret", CERTIFICATE, "-n", NAMESPACE)

    realm.wait_for_ledger("the new Secret", after=serial)


def test_a_changed_duration_issues_anew_without_a_denial(realm: Realm, serial: str) -> None:
    early = len(realm.events("EarlyIssuance"))
    realm.control_plane.kubectl(
        "patch", "derasset", "battery", "-n", NAMESPACE, "--type=merge",
        "-p", json.dumps({"spec": {"identity": {"certificateDurationSeconds": 864000}}}),
    )  # fmt: skip

    realm.wait_for_ledger("a certificate of the new duration", after=serial)

    issued = realm.issued()
    lifetime = issued.not_valid_after_utc - issued.not_valid_before_utc
    assert lifetime.total_seconds() == pytest.approx(864000, abs=60)
    own = [
        each
        for each in realm.get("certificaterequests")["items"]
        if each["spec"].get("username") == CERT_MANAGER_USER
    ]
    denied = [
        each for each in own
        if any(c["type"] == "Denied" for c in each.get("status", {}).get("conditions", []))
    ]  # fmt: skip
    assert own
    assert denied == [], "cert-manager waits an hour after a denial"
    assert len(realm.events("EarlyIssuance")) == early


def test_after_a_rotated_authority_certificates_are_issued_and_trusted(
    realm: Realm, serial: str
) -> None:
    before = secret_data(realm.control_plane, "cert-manager", "derops-agent-ca")["tls.crt"]
    realm.control_plane.kubectl("delete", "secret", "derops-agent-ca", "-n", "cert-manager")

    def rotated() -> bool:
        try:
            secret = secret_data(realm.control_plane, "cert-manager", "derops-agent-ca")
        except Exception:  # it is being made anew
            return False
        return secret["tls.crt"] not in (b"", before)

    eventually(rotated, "the new authority")
    realm.control_plane.kubectl(
        "wait", "--for=condition=Ready", "clusterissuer", AGENT_ISSUER, "--timeout=60s"
    )
    realm.renew()

    realm.wait_for_ledger("a certificate of the new authority", after=serial)

    authority = secret_data(realm.control_plane, "cert-manager", "derops-agent-ca")["tls.crt"]
    realm.issued().verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
