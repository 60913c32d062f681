"""The operator's program says on /readyz when cert-manager is not who it takes it for."""

import pytest
from tests.stack import ops
from tests.stack.identities import CERT_MANAGER_USER, install_policies
from tests.stack.stack import Stack

WITHIN_SECONDS = 120


def test_names_that_agree_are_not_told(stack: Stack) -> None:
    status, text = ops.ask(stack.ops_ports["operator"])

    assert status == 200
    assert "cert-manager" not in text
    assert "degraded" not in text


@pytest.mark.timeout(600)
def test_a_wrong_name_is_told_within_two_minutes(stack: Stack) -> None:
    operator = stack.parts["operator"]
    operator.terminate()
    operator.environment["DEROPS_OPERATOR_CERT_MANAGER_USER"] = "system:serviceaccount:other:name"
    operator.start()
    try:
        operator.wait_until(
            lambda: "other:name" in ops.ask(stack.ops_ports["operator"])[1], WITHIN_SECONDS
        )
        status, text = ops.ask(stack.ops_ports["operator"])
    finally:
        operator.terminate()
        del operator.environment["DEROPS_OPERATOR_CERT_MANAGER_USER"]
        stack.restart("operator")

    assert status == 503
    assert CERT_MANAGER_USER in text
    assert "set it to the user name of cert-manager's ServiceAccount" in text


@pytest.mark.timeout(600)
def test_missing_policies_are_told_and_leave_the_operator_ready(stack: Stack) -> None:
    name = "derops-certificaterequests"
    stack.kubectl("delete", "validatingadmissionpolicybinding", name)
    try:
        stack.parts["operator"].wait_until(
            lambda: name in ops.ask(stack.ops_ports["operator"])[1], WITHIN_SECONDS
        )
        status, text = ops.ask(stack.ops_ports["operator"])
    finally:
        install_policies(stack.control_plane)

    assert status == 200
    assert "degraded admission policies: not installed, or without a binding" in text
    stack.parts["operator"].wait_until(
        lambda: "degraded" not in ops.ask(stack.ops_ports["operator"])[1], WITHIN_SECONDS
    )
