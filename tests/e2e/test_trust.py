"""The operator's program says on /readyz when cert-manager is not who it takes it for."""

import urllib.error
import urllib.request

from tests.stack.identities import CERT_MANAGER_USER, install_policies
from tests.stack.stack import Stack

WITHIN_SECONDS = 120


def readyz(stack: Stack) -> tuple[int, str]:
    """Return status and text of the operator's answer; 0 while nobody answers."""
    url = f"http://127.0.0.1:{stack.ops_ports['operator']}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_names_that_agree_are_not_told(stack: Stack) -> None:
    status, text = readyz(stack)

    assert status == 200
    assert "cert-manager" not in text
    assert "degraded" not in text


def test_a_wrong_name_is_told_within_two_minutes(stack: Stack) -> None:
    operator = stack.parts["operator"]
    operator.terminate()
    operator.environment["DEROPS_OPERATOR_CERT_MANAGER_USER"] = "system:serviceaccount:other:name"
    operator.start()
    try:
        operator.wait_until(lambda: "other:name" in readyz(stack)[1], WITHIN_SECONDS)
        status, text = readyz(stack)
    finally:
        operator.terminate()
        del operator.environment["DEROPS_OPERATOR_CERT_MANAGER_USER"]
        stack.restart("operator")

    assert status == 503
    assert CERT_MANAGER_USER in text
    assert "set it to the user name of cert-manager's ServiceAccount" in text


def test_missing_policies_are_told_and_leave_the_operator_ready(stack: Stack) -> None:
    name = "derops-certificaterequests"
    stack.kubectl("delete", "validatingadmissionpolicybinding", name)
    try:
        stack.parts["operator"].wait_until(lambda: name in readyz(stack)[1], WITHIN_SECONDS)
        status, text = readyz(stack)
    finally:
        install_policies(stack.control_plane)

    assert status == 200
    assert "degraded admission policies: not installed, or without a binding" in text
    stack.parts["operator"].wait_until(lambda: readyz(stack)[1] == "ok\n", WITHIN_SECONDS)
