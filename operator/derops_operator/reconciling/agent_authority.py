"""How the operator learns the agent CA: by a certificate of it that is good for nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from derops_operator.reconciling.identity import find_flaws
from derops_operator.resources.certificates import Certificate, Request
from derops_operator.resources.instants import parse_instant
from derops_operator.resources.objects import MANAGED_BY

TRUST_CERTIFICATE = "derops-agent-trust"
"""Certificate, Secret and only name in it."""

AGENT_AUTHORITY = "derops-agent-ca"
"""Certificate of the agent CA, in cert-manager's namespace."""

_USAGES = ["digital signature"]
_DURATION = {"duration": "1h", "renewBefore": "20m"}


def namespace_of(user: str) -> str:
    """Return the namespace of a ServiceAccount by its user name; empty = it is none."""
    *prefix, namespace, _ = ["", "", *user.split(":")]
    return namespace if prefix[-2:] == ["system", "serviceaccount"] else ""


def wanted_trust_certificate(namespace: str, issuer: str) -> dict[str, Any]:
    """Return the Certificate by whose request cert-manager says who the agent CA is.

    Nothing can be done with it: it has no URI, and is for no client and no server.
    """
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": TRUST_CERTIFICATE, "namespace": namespace, "labels": MANAGED_BY},
        "spec": {
            "secretName": TRUST_CERTIFICATE,
            **_DURATION,
            "dnsNames": [TRUST_CERTIFICATE],
            "usages": _USAGES,
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": issuer},
            "revisionHistoryLimit": 2,
        },
    }


def refuse_to_vouch(request: Request, issuer: str) -> str:
    """Return why a request for that Certificate must not be signed; empty = it is as it should be.

    The caller knows whose it is: cert-manager made it, for our Certificate, in our namespace.
    """
    csr = request.csr
    if csr is None:
        return "the request cannot be read"
    names = (csr.dns_names, csr.uris, csr.other_names)
    own = {
        f"its names are not exactly {TRUST_CERTIFICATE}": names != ((TRUST_CERTIFICATE,), (), 1),
        f"it lasts {request.duration_seconds} s": request.duration_seconds != 3600,
    }
    return find_flaws(request, csr, issuer, own, _USAGES)


def to_approve(own: Sequence[Request], issuer: str) -> list[Request]:
    """Return the requests that wait for an answer and are right to sign; the others get none."""
    return [
        each
        for each in own
        if each.issued is None
        and not each.condition("Approved")
        and not each.condition("Denied")
        and not refuse_to_vouch(each, issuer)
    ]


def telling(own: Sequence[Request], issuer: str) -> Request | None:
    """Return the newest request whose answer tells who the agent CA is."""
    return next(
        (
            each
            for each in own
            if each.issued is not None
            and each.csr is not None
            and each.issued.public_key_sha256 == each.csr.public_key_sha256
            and each.condition("Approved").get("status") == "True"
            and not refuse_to_vouch(each, issuer)
        ),
        None,
    )


def signed_agent(request: Request, issuer: str, requester: str) -> bool:
    """Tell whether the agent CA signed a request for an agent."""
    return (
        bool(request.asset_name)
        and request.issued is not None
        and request.username == requester
        and (request.issuer_kind, request.issuer_name) == ("ClusterIssuer", issuer)
        and request.condition("Approved").get("status") == "True"
    )


def is_outdated(told: Request, agent: Request | None) -> bool:
    """Tell whether an agent's request was signed later than ours, and by another CA."""
    if agent is None or agent.issued is None or told.issued is None:
        return False
    later = agent.issued.not_before_us >= told.issued.not_before_us
    return later and bool(agent.ca_sha256) and agent.ca_sha256 != told.ca_sha256


def is_reissued(told: Request, authority: Mapping[str, Any] | None) -> bool:
    """Tell whether the Certificate of the agent CA itself was issued since ours was signed.

    Args:
        told: Our newest request.
        authority: The Certificate of the agent CA; None where somebody brings another.
    """
    issued = (authority or {}).get("status", {}).get("notBefore")
    if told.issued is None or not isinstance(issued, str):
        return False
    return parse_instant(issued) >= told.issued.not_before_us


def has_nothing_to_come(certificate: Certificate, own: Sequence[Request]) -> bool:
    """Tell whether cert-manager is done and left no request that tells anything."""
    done = certificate.is_true("Ready") and not certificate.is_true("Issuing")
    return done and all(each.issued is not None for each in own)
