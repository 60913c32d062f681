"""Whether cert-manager is who the settings and the admission policies say it is.

The operator signs only what cert-manager asked for, known by the name of its ServiceAccount. A
wrong name would show at the next renewal of some agent, weeks later, and then for all at once; so
it is looked for all the time, in the requests for the certificates of gateway and operator.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from derops.observability import Readiness
from derops_operator.cluster.client import GoneError, Manifest

POLICIES = (
    "derops-certificates",
    "derops-certificaterequests",
    "derops-certificatesigningrequests",
    "derops-trust",
)
"""ValidatingAdmissionPolicies of the chart; each has a binding of the same name."""

NAMES_PART = "names of cert-manager and operator"
POLICIES_PART = "admission policies"
REQUESTER_PART = "requester"

_OWN_ISSUERS = ("derops-server", "derops-control")
_CONTROL_ISSUER = "derops-control"
_LITERAL = re.compile(r"\s*'([^']*)'\s*")
_SECONDS = 60.0
_ERROR_LENGTH = 300

_log = structlog.get_logger("trust")


class TrustPort(Protocol):
    """What is asked of the API server."""

    async def user_name(self) -> str:
        """Return the name by which the API server knows this program."""

    async def requests_in(self, namespace: str) -> list[Manifest]:
        """Return the CertificateRequests of a namespace, the first 100 at most."""

    async def policy(self, name: str) -> tuple[Manifest, Manifest]:
        """Return a policy and its binding; GoneError where one of them is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Who is who, by the settings."""

    cert_manager_user: str
    namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Who is who, by what the API server holds."""

    operator_user: str
    requester: str
    """Who made the newest request for a certificate of gateway or operator; empty = not known."""

    policies: Mapping[str, Mapping[str, str]]
    """The names that each policy holds, of those that are installed and bound."""

    behind: list[str] = field(default_factory=list)
    """Certificates of the control port that the CA of now has not signed."""


def newest_requester(requests: Iterable[Mapping[str, Any]]) -> str:
    """Return who made the newest request that gateway or operator have their certificates from."""
    own = [each for each in requests if _is_own(each)]
    if not own:
        return ""
    newest = max(own, key=lambda each: str(each["metadata"].get("creationTimestamp", "")))
    return str(newest["spec"].get("username", ""))


def behind(requests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the Certificates of the control port whose CA is not that of the newest one.

    Operator and gateway know each other by the CA that signed both: where it has another key, one
    that was renewed under it and one that was not do not.
    """
    newest: dict[str, tuple[str, str]] = {}
    for each in requests:
        name, signed = _owner(each), each.get("status", {})
        if not name or each["spec"]["issuerRef"].get("name") != _CONTROL_ISSUER:
            continue
        if signed.get("certificate") and signed.get("ca"):
            created = str(each["metadata"].get("creationTimestamp", ""))
            newest[name] = max(newest.get(name, ("", "")), (created, str(signed["ca"])))
    _, current = max(newest.values(), default=("", ""))
    return sorted(name for name, (_, authority) in newest.items() if authority != current)


def policy_names(policy: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a policy that are nothing but a string."""
    variables = policy.get("spec", {}).get("variables", [])
    found = {each["name"]: _LITERAL.fullmatch(each["expression"]) for each in variables}
    return {name: match[1] for name, match in found.items() if match}


def wrong_names(expected: Expected, seen: Observed) -> list[str]:
    """Return what contradicts what, with both names and what to do; empty = nothing does."""
    wrong = []
    if seen.requester and seen.requester != expected.cert_manager_user:
        wrong.append(
            f"certificates in namespace {expected.namespace} are requested by {seen.requester}, but"
            f" DEROPS_OPERATOR_CERT_MANAGER_USER is {expected.cert_manager_user}: set it to the"
            " user name of cert-manager's ServiceAccount, or no agent gets a certificate"
        )
    wanted = {
        "certManager": (expected.cert_manager_user, "DEROPS_OPERATOR_CERT_MANAGER_USER"),
        "operator": (seen.operator_user, "the operator's own user name"),
        "deropsNamespace": (expected.namespace, "DEROPS_OPERATOR_NAMESPACE"),
    }
    for policy, names in seen.policies.items():
        for variable, (name, source) in wanted.items():
            if names.get(variable, name) != name:
                wrong.append(
                    f"ValidatingAdmissionPolicy {policy} has {variable} {names[variable]}, but"
                    f" {source} is {name}: apply the policies again with the right value"
                )
    return wrong


def doubts(expected: Expected, seen: Observed) -> dict[str, str]:
    """Return what cannot be told or is not guarded, by part."""
    found = {}
    missing = [name for name in POLICIES if name not in seen.policies]
    if missing:
        found[POLICIES_PART] = (
            f"not installed, or without a binding: {', '.join(missing)}; whoever can create"
            " Certificates or ConfigMaps in some namespace is held back by the operator's own"
            " checks alone: apply admission-policies.yaml"
        )
    if not seen.requester:
        found[REQUESTER_PART] = (
            f"no CertificateRequest in namespace {expected.namespace} tells who cert-manager is;"
            f" nobody has checked that it is {expected.cert_manager_user}"
        )
    return found


class TrustCheck:
    """Looks now and then, and says on ``/readyz`` what it found."""

    def __init__(
        self,
        expected: Expected,
        port: TrustPort,
        readiness: Readiness,
        renew: Callable[[str], Awaitable[None]],
    ) -> None:
        """Make it; ``renew`` has a Certificate of our namespace issued again."""
        self._renew = renew
        self._expected = expected
        self._port = port
        self._readiness = readiness

    async def run(self) -> None:
        """Look at once and then every minute, until cancelled; what fails is tried again."""
        while True:
            await self.look()
            await asyncio.sleep(_SECONDS)

    async def look(self) -> None:
        """Look once."""
        try:
            seen = await self._see()
        except Exception as error:  # a check must not end what it checks
            why = " ".join(str(error).split())[:_ERROR_LENGTH]
            _log.warning("trust.unknown", why=why)
            for part in (POLICIES_PART, REQUESTER_PART):
                self._readiness.degraded(part, f"cannot be looked at: {why}")
            return
        if wrong := wrong_names(self._expected, seen):
            self._readiness.waiting(NAMES_PART, "; ".join(wrong))
        else:
            self._readiness.found(NAMES_PART)
        found = doubts(self._expected, seen)
        for part in (POLICIES_PART, REQUESTER_PART):
            if part in found:
                self._readiness.degraded(part, found[part])
            else:
                self._readiness.found(part)
        for name in seen.behind:
            await self._renew_soon(name)

    async def _renew_soon(self, name: str) -> None:
        try:
            await self._renew(name)
        except Exception as error:  # tried again in a minute
            _log.warning("certificate.not_renewed", name=name, why=str(error)[:_ERROR_LENGTH])

    async def _see(self) -> Observed:
        policies = {}
        for name in POLICIES:
            try:
                policy, _ = await self._port.policy(name)
                policies[name] = policy_names(policy)
            except GoneError:
                continue
        requests = await self._port.requests_in(self._expected.namespace)
        return Observed(
            operator_user=await self._port.user_name(),
            requester=newest_requester(requests),
            policies=policies,
            behind=behind(requests),
        )


def _owner(request: Mapping[str, Any]) -> str:
    """Return the Certificate that cert-manager made a request for."""
    owners = request["metadata"].get("ownerReferences", [])
    found = (
        each for each in owners if each.get("kind") == "Certificate" and each.get("controller")
    )
    return next((str(each.get("name", "")) for each in found), "") if _is_own(request) else ""


def _is_own(request: Mapping[str, Any]) -> bool:
    issuer = request["spec"].get("issuerRef", {})
    owners = request["metadata"].get("ownerReferences", [])
    return (
        issuer.get("kind") == "Issuer"
        and issuer.get("name") in _OWN_ISSUERS
        and any(each.get("kind") == "Certificate" and each.get("controller") for each in owners)
    )
