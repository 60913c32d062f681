"""Trust reaches agents and gateway, also when every certificate and each authority changes.

Nobody carries anything: the stack only mounts what is in the namespace of a pod.
"""

import json
import socket
import ssl
from typing import Any

import pytest
from cryptography import x509
from tests.e2e.acting import Pilot
from tests.stack import ops
from tests.stack.fleet import secret_name
from tests.stack.identities import AGENT_CA, NAMESPACE, OPERATOR_USER, SERVER_CA, secret_data
from tests.stack.processes import StackError
from tests.stack.stack import Stack
from tests.waiting import eventually

HEALED_SECONDS = 60


def told(stack: Stack, namespace: str, name: str = SERVER_CA) -> str:
    """Return what a ConfigMap holds; empty = there is none."""
    answer = stack.kubectl(
        "get", "configmap", name, "-n", namespace, "-o", "json", "--ignore-not-found"
    )
    if not answer:
        return ""
    data: dict[str, str] = json.loads(answer)["data"]
    return data["ca.crt"] if set(data) == {"ca.crt"} else ""


def authority(stack: Stack, namespace: str, name: str) -> x509.Certificate:
    """Return the certificate of an authority, from cert-manager's own Secret."""
    return x509.load_pem_x509_certificate(
        secret_data(stack.control_plane, namespace, name)["tls.crt"]
    )


def renew(stack: Stack, namespace: str, *secrets: str) -> None:
    """Have cert-manager issue again, under a new key, and wait until it did."""
    before = {name: secret_data(stack.control_plane, namespace, name) for name in secrets}
    stack.kubectl("delete", "secret", *secrets, "-n", namespace)

    def is_new(name: str) -> bool:
        try:
            found = secret_data(stack.control_plane, namespace, name)
        except StackError:
            return False
        return bool(found.get("tls.crt")) and found["tls.crt"] != before[name]["tls.crt"]

    for name in secrets:
        eventually(lambda name=name: is_new(name), f"{name} to be issued again")  # type: ignore[misc]


def shown(address: str) -> x509.Certificate:
    """Return what a port shows now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port))) as raw,
        context.wrap_socket(raw) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def ledger(pilot: Pilot) -> dict[str, Any]:
    identity: dict[str, Any] = pilot.get("derasset", "battery")["status"]["identity"]
    return identity


def works(pilot: Pilot, name: str) -> None:
    """Have a dispatch reach the agent and be confirmed by it."""
    pilot.dispatch(name)
    pilot.wait_for_phase(name, "Complete")


@pytest.fixture
def battery(pilot: Pilot) -> Pilot:
    pilot.battery()
    return pilot


def test_the_server_ca_comes_is_healed_and_goes(battery: Pilot) -> None:
    stack, namespace = battery.stack, battery.namespace
    expected = told(stack, NAMESPACE)
    assert "BEGIN CERTIFICATE" in expected
    assert told(stack, namespace) == expected
    assert told(stack, "default") == ""

    stack.kubectl("delete", "configmap", SERVER_CA, "-n", namespace)
    eventually(lambda: told(stack, namespace) == expected, "the deleted one", HEALED_SECONDS)
    # Nobody else may change it; what the operator's account may, stands for a gap in the policy.
    stack.kubectl(
        "patch", "configmap", SERVER_CA, "-n", namespace, "--as", OPERATOR_USER, "--type=merge",
        "-p", '{"data": {"ca.crt": "changed", "more": "x"}, "immutable": true}',
    )  # fmt: skip
    eventually(lambda: told(stack, namespace) == expected, "the changed one", HEALED_SECONDS)

    stack.kubectl("delete", "derasset", "battery", "-n", namespace, "--timeout=60s")
    eventually(lambda: told(stack, namespace) == "", "the ConfigMap to go")
    assert told(stack, NAMESPACE) == expected


def test_a_namespace_that_goes_takes_it_along(battery: Pilot) -> None:
    stack, namespace = battery.stack, battery.namespace

    stack.kubectl("delete", "namespace", namespace, "--timeout=60s")

    _, text = ops.ask(stack.ops_ports["operator"])
    assert "server CA in namespaces" not in text
    battery.create_namespace()


@pytest.mark.timeout(600)
def test_every_certificate_is_renewed_and_the_agent_stays_or_comes_back(battery: Pilot) -> None:
    stack = battery.stack
    before = ledger(battery)["current"]["serialNumber"]

    renew(stack, NAMESPACE, "derops-gateway-tls", "derops-gateway-control-tls",
          "derops-operator-tls", "derops-agent-trust")  # fmt: skip
    renew(stack, battery.namespace, secret_name("battery"))

    leaf = x509.load_pem_x509_certificate(
        secret_data(stack.control_plane, NAMESPACE, "derops-gateway-tls")["tls.crt"]
    )
    eventually(
        lambda: shown(stack.gateway).serial_number == leaf.serial_number, "the new certificate"
    )
    eventually(lambda: ledger(battery)["current"]["serialNumber"] != before, "the agent's")
    works(battery, "renewed")
    assert stack.parts["gateway"].alive


@pytest.mark.timeout(600)
def test_a_server_ca_with_a_new_key_is_trusted_before_it_signs(battery: Pilot) -> None:
    stack = battery.stack
    before = told(stack, battery.namespace)

    renew(stack, NAMESPACE, "derops-server-ca")
    eventually(lambda: told(stack, battery.namespace) not in ("", before), "the new authority", 90)
    new = authority(stack, NAMESPACE, "derops-server-ca")
    known = x509.load_pem_x509_certificates(told(stack, battery.namespace).encode())
    assert known[0].serial_number == new.serial_number
    assert x509.load_pem_x509_certificates(before.encode())[0] in known
    works(battery, "under-the-old")

    renew(stack, NAMESPACE, "derops-gateway-tls", "derops-api-tls")
    api = stack.api_url.removeprefix("https://")
    eventually(lambda: is_signed_by(shown(stack.gateway), new), "a leaf of the new authority")
    eventually(lambda: is_signed_by(shown(api), new), "a leaf of the new authority at the API")
    stack.kill_agent(battery.namespace, "battery")
    stack.restart_agent(battery.namespace, "battery")
    works(battery, "under-the-new")


@pytest.mark.timeout(600)
def test_an_agent_ca_with_a_new_key_reaches_the_gateway(battery: Pilot) -> None:
    stack = battery.stack
    before = told(stack, NAMESPACE, AGENT_CA)
    serial = ledger(battery)["current"]["serialNumber"]

    renew(stack, "cert-manager", "derops-agent-ca")
    new = authority(stack, "cert-manager", "derops-agent-ca")
    eventually(
        lambda: told(stack, NAMESPACE, AGENT_CA) not in ("", before), "it before its use", 120
    )
    renew(stack, battery.namespace, secret_name("battery"))
    leaf = secret_data(stack.control_plane, battery.namespace, secret_name("battery"))["tls.crt"]
    assert is_signed_by(x509.load_pem_x509_certificate(leaf), new)

    known = x509.load_pem_x509_certificates(told(stack, NAMESPACE, AGENT_CA).encode())
    assert known[0].serial_number == new.serial_number
    assert x509.load_pem_x509_certificates(before.encode())[0] in known
    eventually(lambda: ledger(battery)["current"]["serialNumber"] != serial, "its use", 120)
    works(battery, "under-the-new")


@pytest.mark.timeout(600)
def test_a_control_ca_with_a_new_key_parts_nobody_for_long(battery: Pilot) -> None:
    stack = battery.stack
    before = secret_data(stack.control_plane, NAMESPACE, "derops-operator-tls")["tls.crt"]

    renew(stack, NAMESPACE, "derops-control-ca")
    new = authority(stack, NAMESPACE, "derops-control-ca")
    renew(stack, NAMESPACE, "derops-gateway-control-tls")

    def operators() -> bytes:
        return secret_data(stack.control_plane, NAMESPACE, "derops-operator-tls")["tls.crt"]

    eventually(lambda: operators() != before, "the operator's certificate", 150)
    assert is_signed_by(x509.load_pem_x509_certificate(operators()), new)
    works(battery, "under-the-new")


@pytest.mark.timeout(600)
def test_a_compromised_authority_is_dropped_with_the_operators_copy(battery: Pilot) -> None:
    stack = battery.stack
    renew(stack, NAMESPACE, "derops-server-ca")
    new = authority(stack, NAMESPACE, "derops-server-ca")

    def only_the_new(namespace: str) -> bool:
        known = x509.load_pem_x509_certificates(told(stack, namespace).encode() or b"")
        return [each.serial_number for each in known] == [new.serial_number]

    eventually(lambda: x509.load_pem_x509_certificates(
        told(stack, NAMESPACE).encode())[0].serial_number == new.serial_number, "it")  # fmt: skip
    renew(stack, NAMESPACE, "derops-gateway-tls", "derops-api-tls")
    api = stack.api_url.removeprefix("https://")
    eventually(lambda: is_signed_by(shown(stack.gateway), new), "a leaf of the new authority")
    eventually(lambda: is_signed_by(shown(api), new), "a leaf of the new authority at the API")

    stack.kubectl("delete", "configmap", SERVER_CA, "-n", NAMESPACE)

    eventually(
        lambda: told(stack, NAMESPACE) and only_the_new(NAMESPACE), "the operator's copy", 60
    )
    eventually(lambda: only_the_new(battery.namespace), "the tenant's copy", 60)
    works(battery, "without-the-old")


def is_signed_by(leaf: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except Exception:  # of many kinds: another key, another name
        return False
    return True
