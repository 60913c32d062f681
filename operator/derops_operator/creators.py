"""Who ordered a Dispatch: what its annotation says, where the API server lets nobody forge that.

The policy and its binding tell themselves since when they guard. What is older may say anything,
and what is not guarded is not believed: then the creator is unknown, and stays so.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from derops.observing import Readiness
from derops.schedules import SECOND_US
from derops_operator.facts import CREATOR_ANNOTATION, UNKNOWN_CREATOR
from derops_operator.instants import parse_instant
from derops_operator.kube import GoneError, Manifest
from derops_operator.trust import policy_names

POLICY = "derops-creator"
"""ValidatingAdmissionPolicy of the chart, with a binding of the same name."""

SETTLING_US = 10 * SECOND_US
"""How long after its creation a policy may not be in force yet, at some API server."""

_PART = "who ordered a dispatch"
_SECONDS, _UNGUARDED_SECONDS = 60.0, 5.0
_ERROR_LENGTH = 300
_GUARDED = {"CREATE", "UPDATE"}


class PolicyPort(Protocol):
    """What is asked of the API server."""

    async def policy(self, name: str) -> tuple[Manifest, Manifest]:
        """Return a policy and its binding; GoneError where one of them is missing."""


def why_unguarded(policy: Mapping[str, Any], binding: Mapping[str, Any]) -> str:
    """Return why a policy that is installed does not guard every Dispatch; empty = it does.

    It is for mistakes: who may write policies may also write one that looks like ours.
    """
    spec, bound = policy.get("spec", {}), binding.get("spec", {})
    where = spec.get("matchConstraints") or {}
    rules = where.get("resourceRules") or []
    narrowed = (
        spec.get("matchConditions")
        or where.get("excludeResourceRules")
        or any(where.get(each) for each in ("namespaceSelector", "objectSelector"))
        or not any({*each.get("operations", [])} >= _GUARDED for each in rules)
    )
    if policy_names(policy).get("annotation") != CREATOR_ANNOTATION:
        return f"the policy guards another annotation than {CREATOR_ANNOTATION}"
    if spec.get("failurePolicy", "Fail") != "Fail":
        return f"the policy has failurePolicy {spec['failurePolicy']}, and not Fail"
    if narrowed:
        return "the policy is made not to match every Dispatch"
    if "Deny" not in (bound.get("validationActions") or []):
        return "the binding does not deny"
    if bound.get("matchResources") or bound.get("policyName") != POLICY:
        return "the binding is made not to match every Dispatch"
    return ""


def since_us(policy: Mapping[str, Any], binding: Mapping[str, Any]) -> int:
    """Return from when on both are in force everywhere."""
    created = (parse_instant(each["metadata"]["creationTimestamp"]) for each in (policy, binding))
    return max(created) + SETTLING_US


class Creators:
    """Looks now and then whether creators can be believed, and says on ``/readyz`` why not."""

    def __init__(self, port: PolicyPort, readiness: Readiness) -> None:
        self._port = port
        self._readiness = readiness
        self.guarded_since_us: int | None = None
        """Since when nobody can forge who ordered a dispatch; None = anybody can."""

    async def run(self) -> None:
        """Look every minute, more often while creators are unknown, until cancelled."""
        while True:
            unguarded = self.guarded_since_us is None
            await asyncio.sleep(_UNGUARDED_SECONDS if unguarded else _SECONDS)
            await self.look()

    async def look(self) -> None:
        """Look once. Without an answer, what was known before stays."""
        try:
            policy, binding = await self._port.policy(POLICY)
            why = why_unguarded(policy, binding)
            self.guarded_since_us = None if why else since_us(policy, binding)
        except GoneError:
            self.guarded_since_us = None
            why = f"ValidatingAdmissionPolicy {POLICY} is not installed, or without a binding"
        except Exception as error:  # who ordered it is never worth an operator that stands still
            why = "cannot be looked at: " + " ".join(str(error).split())[:_ERROR_LENGTH]
        if why:
            self._readiness.degraded(
                _PART,
                f"{why}; new dispatches say {UNKNOWN_CREATOR}: apply creator-policies.yaml",
            )
        else:
            self._readiness.found(_PART)
