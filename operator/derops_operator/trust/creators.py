"""Who ordered a Dispatch: what its annotation says, where the API server lets nobody forge that.

The policy and its binding say themselves when they last changed. A Dispatch that is older than that
may say anything: its creator is unknown, and stays so. The operator hears of a new Dispatch first
and looks at both then. Where they have not changed since before it was made, they guarded it, and
its annotation is believed. So each new Dispatch has a look of its own.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Protocol

from kubernetes.aio.client.exceptions import ApiException

from derops.observability import Readiness
from derops.schedules import SECOND_US
from derops_operator.cluster.client import TRANSIENT, GoneError, Manifest
from derops_operator.resources.dispatches import CREATOR_ANNOTATION, UNKNOWN_CREATOR
from derops_operator.resources.instants import parse_instant
from derops_operator.trust.cert_manager import policy_names

POLICY = "derops-creator"
"""ValidatingAdmissionPolicy of the chart, with a binding of the same name."""

SETTLING_US = 10 * SECOND_US
"""How long after its creation or change a policy may not be in force yet, at some API server."""

RULES_SHA256 = "b53ed3ab51055dfaf35de1c39cf85a689154d919ffab8c1a3f51827c87be2172"
"""Of what the policy evaluates, but for the name of the API's ServiceAccount; see ``rules_of``."""

_PART = "who ordered a dispatch"
_SECONDS, _UNGUARDED_SECONDS = 60.0, 5.0
_ERROR_LENGTH = 300
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_RULE = {
    "apiGroups": ["derops.io"],
    "apiVersions": ["*"],
    "operations": ["CREATE", "UPDATE"],
    "resources": ["dispatches", "dispatches/*"],
}


class PolicyPort(Protocol):
    """What is asked of the API server."""

    async def policy(self, name: str) -> tuple[Manifest, Manifest]:
        """Return a policy and its binding; GoneError where one of them is missing."""


# Branches: one for each way in which a policy and its binding may let something through.
def why_unguarded(policy: Mapping[str, Any], binding: Mapping[str, Any]) -> str:
    """Return why a policy that is installed does not guard every Dispatch; empty = it does.

    It is for mistakes: who may write policies may also write one that looks like ours.
    """
    spec, bound = policy.get("spec", {}), binding.get("spec", {})
    if policy_names(policy).get("annotation") != CREATOR_ANNOTATION:
        return f"the policy guards another annotation than {CREATOR_ANNOTATION}"
    if spec.get("failurePolicy", "Fail") != "Fail":
        return f"the policy has failurePolicy {spec['failurePolicy']}, and not Fail"
    if spec.get("matchConditions") or spec.get("paramKind") or not _matches_every(spec):
        return "the policy is made not to match every Dispatch"
    if hashlib.sha256(rules_of(policy).encode()).hexdigest() != RULES_SHA256:
        return "the policy has other rules than those of this version"
    if "Deny" not in (bound.get("validationActions") or []):
        return "the binding does not deny"
    if bound.get("matchResources") or bound.get("policyName") != POLICY:
        return "the binding is made not to match every Dispatch"
    return ""


def rules_of(policy: Mapping[str, Any]) -> str:
    """Return what a policy evaluates, however its lines are broken."""
    spec = policy.get("spec", {})
    variables = {each["name"]: each["expression"] for each in spec.get("variables") or []}
    variables.pop("api", None)
    rules = [each["expression"] for each in spec.get("validations") or []]
    return "\n".join(" ".join(each.split()) for each in (*sum(variables.items(), ()), *rules))


def _matches_every(spec: Mapping[str, Any]) -> bool:
    where = spec.get("matchConstraints") or {}
    narrowed = any(
        where.get(each) for each in ("excludeResourceRules", "namespaceSelector", "objectSelector")
    )
    return not narrowed and any(
        not each.get("resourceNames")
        and each.get("scope", "*") in ("*", "Namespaced")
        and all({*each.get(key, [])} >= {*values} for key, values in _RULE.items())
        for each in where.get("resourceRules") or []
    )


def since_us(policy: Mapping[str, Any], binding: Mapping[str, Any]) -> int:
    """Return from when on both are in force everywhere, as they are."""
    changed = (parse_instant(at) for each in (policy, binding) for at in _changes(each["metadata"]))
    return max(changed) + SETTLING_US


def _changes(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield when an object was made, and when each of its managers last changed it."""
    yield metadata["creationTimestamp"]
    for each in metadata.get("managedFields") or []:
        if not each.get("subresource") and each.get("time"):
            yield each["time"]


class Creators:
    """Looks whether creators can be believed, and says on ``/readyz`` why not."""

    def __init__(self, port: PolicyPort, readiness: Readiness) -> None:
        self._port = port
        self._readiness = readiness
        self.guarded_since_us: int | None = None
        """Since when nobody can forge who ordered a dispatch; None = anybody can."""

        self._turn = asyncio.Lock()
        self._looks = 0

    async def run(self) -> None:
        """Look every minute, more often while creators are unknown, until cancelled."""
        while True:
            with suppress(*TRANSIENT):
                await self.look()
            unguarded = self.guarded_since_us is None
            await asyncio.sleep(_UNGUARDED_SECONDS if unguarded else _SECONDS)

    async def look(self) -> None:
        """Look, unless another look begins from now on: then wait for that one.

        Raises:
            ApiException, aiohttp.ClientError, OSError: There is no answer; what was known before
                stays, and holds for what was made until then.
        """
        looks = self._looks
        async with self._turn:
            if self._looks == looks:
                self._looks += 1
                await self._look()

    async def _look(self) -> None:
        try:
            policy, binding = await self._port.policy(POLICY)
            why = why_unguarded(policy, binding)
            self.guarded_since_us = None if why else since_us(policy, binding)
        except GoneError:
            self.guarded_since_us = None
            why = f"ValidatingAdmissionPolicy {POLICY} is not installed, or without a binding"
        except TRANSIENT as error:
            why = _unseen(error)
            if not isinstance(error, ApiException) or error.status not in _REFUSED:
                self._tell(why)
                raise
            self.guarded_since_us = None
        except Exception as error:  # the operator goes on, whether or not the creator is known
            self.guarded_since_us = None
            why = _unseen(error)
        self._tell(why)

    def _tell(self, why: str) -> None:
        if why:
            self._readiness.degraded(
                _PART,
                f"{why}; new dispatches say {UNKNOWN_CREATOR}: apply creator-policies.yaml",
            )
        else:
            self._readiness.found(_PART)


def _unseen(error: Exception) -> str:
    return "cannot be looked at: " + " ".join(str(error).split())[:_ERROR_LENGTH]
