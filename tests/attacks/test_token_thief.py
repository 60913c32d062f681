"""Attacks of a thief of a ServiceAccount's token: what the operator's opens. No other part has one.

Gateway, writer and agents never speak to Kubernetes, and run without a token.
"""

import subprocess
import sys

import pytest
import yaml
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import CHART_FILES
from tests.stack.processes import StackError

USER = "system:serviceaccount:derops-system:token-thief"


@pytest.fixture(scope="module")
def thief(kube: ControlPlane) -> ControlPlane:
    """Give a user the operator's rules; return how to ask as that user."""
    group = "rbac.authorization.k8s.io"
    rules = (CHART_FILES / "operator-rules.yaml").read_text(encoding="utf-8")
    kube.apply(
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "token-thief"},
            "rules": yaml.safe_load(rules),
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "token-thief"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "token-thief"},
            "subjects": [
                {"kind": "ServiceAccount", "name": "token-thief", "namespace": "derops-system"}
            ],
        },
    )
    return kube


def may(kube: ControlPlane, verb: str, resource: str, namespace: str = "default") -> bool:
    try:
        kube.kubectl("auth", "can-i", verb, resource, f"--as={USER}", f"--namespace={namespace}")
    except StackError:
        return False
    return True


def test_the_operators_token_does_what_the_operator_does(thief: ControlPlane) -> None:
    """The undisturbed case: without it the refusals below would prove nothing."""
    assert may(thief, "patch", "dispatches.derops.io/status")
    assert may(thief, "create", "certificates.cert-manager.io")
    assert may(thief, "patch", "configmaps/derops-server-ca")


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "secrets"),
        ("create", "serviceaccounts/token"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("create", "dispatches.derops.io"),
        ("create", "derassets.derops.io"),
        ("delete", "derassets.derops.io"),
        ("create", "certificaterequests.cert-manager.io"),
        ("patch", "issuers.cert-manager.io"),
        ("patch", "clusterissuers.cert-manager.io"),
        ("impersonate", "users"),
        ("get", "configmaps"),
        ("list", "configmaps"),
        ("create", "configmaps"),
        ("patch", "configmaps"),
        ("delete", "configmaps"),
        ("escalate", "clusterroles.rbac.authorization.k8s.io"),
        ("bind", "clusterroles.rbac.authorization.k8s.io"),
        ("patch", "clusterroles.rbac.authorization.k8s.io"),
        ("patch", "validatingadmissionpolicies.admissionregistration.k8s.io"),
        ("delete", "validatingadmissionpolicybindings.admissionregistration.k8s.io"),
    ],
)
def test_the_operators_token_opens_nothing_else(
    thief: ControlPlane, verb: str, resource: str
) -> None:
    """S1: a thief of the operator's token reads keys, orders, or gives himself more rights."""
    for namespace in ("default", "derops-system", "cert-manager", "kube-system"):
        assert not may(thief, verb, resource, namespace)


def test_the_operators_rules_have_no_wildcard() -> None:
    """S2: a rule grows beyond what is listed."""
    rules = yaml.safe_load((CHART_FILES / "operator-rules.yaml").read_text(encoding="utf-8"))

    for rule in rules:
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "*" not in words


@pytest.mark.parametrize(
    "module",
    ["derops_headend.gateway.server", "derops_headend.programs.writer", "derops_agent.main"],
)
def test_no_other_part_can_speak_to_kubernetes(module: str) -> None:
    """S3: a thief takes a token from gateway, writer or agent: they have no use for one."""
    code = f"import sys, {module}; sys.exit('kubernetes' in sys.modules or 'kopf' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
