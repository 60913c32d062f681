"""Who ordered a dispatch is told once, and only where nobody could forge it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException
from tests.operator.hostile import HostileKube, installed, operator
from tests.operator.making import T0, Story, asset, at, dispatch, ended, view
from tests.waiting import until

from derops.observability import Readiness
from derops_operator.cluster.client import GoneError, Manifest
from derops_operator.reconciling.dispatches import reconcile_dispatch
from derops_operator.resources.dispatches import CREATOR_ANNOTATION, CREATOR_LIMIT, Dispatch
from derops_operator.resources.instants import format_second
from derops_operator.resources.manifests import read_fact
from derops_operator.resources.objects import Kind
from derops_operator.trust.creators import SETTLING_US, Creators, since_us, why_unguarded

GUARDED_US = at(-100)


def decided(subject: Dispatch, guarded_since_us: int | None) -> dict[str, Any]:
    decision = reconcile_dispatch(
        subject, asset(), view(), at(1), guarded_since_us=guarded_since_us
    )
    return decision.status


def claimed(name: str, **others: Any) -> Dispatch:
    return replace(dispatch(**others), claimed_creator=name)


def test_a_guarded_annotation_is_believed() -> None:
    assert decided(claimed("alice"), GUARDED_US)["createdBy"] == "alice"


@pytest.mark.parametrize("since_us", [None, T0 + 1], ids=["unguarded", "older than the guard"])
def test_what_anybody_could_have_written_is_not_believed(since_us: int | None) -> None:
    assert decided(claimed("alice"), since_us)["createdBy"] == "unknown"


def test_what_nobody_said_is_unknown() -> None:
    assert decided(dispatch(), GUARDED_US)["createdBy"] == "unknown"


def test_what_is_in_flight_since_before_it_was_kept_is_unknown() -> None:
    assert decided(claimed("eve", submitted=True), T0 + 1)["createdBy"] == "unknown"


@pytest.mark.parametrize("later", ["", "eve"], ids=["lost", "changed"])
def test_what_the_status_says_stands_whatever_becomes_of_the_annotation(later: str) -> None:
    story = Story(replace(dispatch(), status=decided(claimed("alice"), GUARDED_US)))
    story.change(claimed_creator=later)

    story.look(2)
    assert story.decision.status["createdBy"] == "alice"
    story.look(101, view(report=ended()))
    assert story.dispatch.phase.terminal
    story.look(102, view(report=ended()))
    assert story.decision.status["createdBy"] == "alice"


def test_what_is_refused_says_who_ordered_it_too() -> None:
    refused = decided(replace(claimed("alice"), watts=9000), GUARDED_US)

    assert (refused["phase"], refused["createdBy"]) == ("Rejected", "alice")


def test_what_ended_before_it_was_kept_stays_as_it_is() -> None:
    """A write for each of all that ever ended would hold up those that end now."""
    over = {"phase": "Complete", "completionTime": format_second(at(0)), "observedGeneration": 1}

    assert "createdBy" not in decided(claimed("alice", status=over), GUARDED_US)


def made(annotations: Any) -> Manifest:
    return {
        "metadata": {
            "namespace": "pilot", "name": "peak", "uid": "u", "resourceVersion": "1",
            "creationTimestamp": format_second(T0), "annotations": annotations,
        },
        "spec": {
            "assetRef": {"name": "battery"}, "durationSeconds": 5,
            "setpoint": {"mode": "CeaseToEnergize"},
        },
    }  # fmt: skip


def read(annotations: Any) -> Dispatch:
    fact = read_fact(Kind.DISPATCH, made(annotations), T0)
    assert isinstance(fact, Dispatch)
    return fact


@pytest.mark.parametrize("annotations", [None, {}, {"others": "x"}, {CREATOR_ANNOTATION: ""}])
def test_a_dispatch_without_the_annotation_claims_nobody(annotations: Any) -> None:
    assert read(annotations).claimed_creator == ""


def test_a_name_is_read_as_it_is() -> None:
    name = "https://login.example.org/#Zoë (Süd) @+\"';--"

    assert read({CREATOR_ANNOTATION: name}).claimed_creator == name


ODD = ["alice\u202e", "alice\u202d", "a\nb", "a\x1b[2J", "x" * (CREATOR_LIMIT + 1), "x" * 200_000]


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_cannot_be_shown_is_bounded_and_told_from_others(name: str) -> None:
    found = read({CREATOR_ANNOTATION: name}).claimed_creator

    assert found.isprintable()
    assert len(found) <= CREATOR_LIMIT
    assert found.startswith(name[0])


def test_no_two_names_are_told_as_one() -> None:
    assert len({read({CREATOR_ANNOTATION: name}).claimed_creator for name in ODD}) == len(ODD)


def test_it_guards_from_when_both_are_in_force() -> None:
    policy, binding = installed("creator-policies.yaml", format_second(T0))
    binding["metadata"]["creationTimestamp"] = format_second(at(5))

    assert why_unguarded(policy, binding) == ""
    assert since_us(policy, binding) == at(5) + SETTLING_US


def test_what_was_made_before_a_change_is_not_guarded() -> None:
    policy, binding = installed("creator-policies.yaml", format_second(T0))
    changed = {"manager": "kubectl", "time": format_second(at(9))}
    binding["metadata"]["managedFields"] = [changed]
    checked = {"manager": "controllers", "subresource": "status", "time": format_second(at(20))}
    policy["metadata"]["managedFields"] = [checked]

    assert since_us(policy, binding) == at(9) + SETTLING_US


def test_lines_may_be_broken_otherwise() -> None:
    policy, binding = installed("creator-policies.yaml")
    first = policy["spec"]["validations"][0]
    first["expression"] = first["expression"].replace(" ", "\n  ")

    assert why_unguarded(policy, binding) == ""


def rule(policy: Manifest) -> Manifest:
    found: Manifest = policy["spec"]["matchConstraints"]["resourceRules"][0]
    return found


MISTAKES: dict[str, Callable[[Manifest, Manifest], object]] = {
    "failurePolicy Ignore": lambda policy, _: policy["spec"].update(failurePolicy="Ignore"),
    "another annotation": lambda policy, _: policy["spec"]["variables"].pop(0),
    "not to match every": lambda policy, _: policy["spec"].update(
        matchConditions=[{"name": "some", "expression": "false"}]
    ),
    "made not to match every": lambda policy, _: policy["spec"]["matchConstraints"].update(
        namespaceSelector={"matchLabels": {"guarded": "yes"}}
    ),
    "made not to match every Dispatch": lambda policy, _: rule(policy).update(
        operations=["CREATE"]
    ),
    "policy is made not to match": lambda policy, _: rule(policy).update(resourceNames=["peak"]),
    "policy is made not to match every": lambda policy, _: rule(policy).update(
        resources=["dispatches"]
    ),
    "to match every Dispatch": lambda policy, _: rule(policy).update(scope="Cluster"),
    "other rules than": lambda policy, _: policy["spec"]["validations"].pop(),
    "other rules": lambda policy, _: policy["spec"]["variables"][2].update(expression="[]"),
    "does not deny": lambda _, binding: binding["spec"].update(validationActions=["Audit"]),
    "binding is made not to match": lambda _, binding: binding["spec"].update(
        matchResources={"namespaceSelector": {"matchLabels": {"guarded": "yes"}}}
    ),
}


@pytest.mark.parametrize("why", MISTAKES)
def test_a_policy_that_was_changed_guards_nothing(why: str) -> None:
    policy, binding = installed("creator-policies.yaml")
    MISTAKES[why](policy, binding)

    assert why in why_unguarded(policy, binding)


class Port:
    """An API server that holds what it is told."""

    def __init__(self) -> None:
        self.answer: tuple[Manifest, Manifest] | Exception = installed("creator-policies.yaml")

    async def policy(self, name: str) -> tuple[Manifest, Manifest]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_what_is_not_guarded_is_told_and_what_cannot_be_asked_stays() -> None:
    port, readiness = Port(), Readiness()
    creators = Creators(port, readiness)
    await creators.look()
    guarded = creators.guarded_since_us
    assert guarded is not None
    assert readiness.report() == (True, "ok")

    port.answer = OSError("away")
    with pytest.raises(OSError, match="away"):
        await creators.look()
    assert creators.guarded_since_us == guarded
    assert "degraded who ordered a dispatch: cannot be looked at: away" in readiness.report()[1]

    port.answer = ApiException(status=403, reason="forbidden")
    await creators.look()
    assert creators.guarded_since_us is None

    port.answer = installed("creator-policies.yaml")
    await creators.look()
    assert creators.guarded_since_us == guarded

    port.answer = GoneError("derops-creator")
    await creators.look()
    assert creators.guarded_since_us is None
    ready, text = readiness.report()
    assert ready
    assert "derops-creator is not installed" in text

    port.answer = installed("creator-policies.yaml")
    await creators.look()
    assert readiness.report() == (True, "ok")


async def test_those_who_ask_together_share_the_look_that_begins_after_all_asked() -> None:
    class Slow(Port):
        looks = 0

        async def policy(self, name: str) -> tuple[Manifest, Manifest]:
            self.looks += 1
            if self.looks == 1:
                waiting.extend(asyncio.create_task(creators.look()) for _ in range(20))
                await asyncio.sleep(0)
                found = await super().policy(name)
                self.answer = GoneError(name)
                return found
            return await super().policy(name)

    port, waiting = Slow(), list[asyncio.Task[None]]()
    creators = Creators(port, Readiness())

    await creators.look()
    await asyncio.gather(*waiting)

    assert port.looks == 2
    assert creators.guarded_since_us is None


async def test_while_the_guard_cannot_be_read_no_status_says_anything(tmp_path: Path) -> None:
    class Deaf(HostileKube):
        asked, away = 0, True

        async def policy(self, name: str) -> tuple[Manifest, Manifest]:
            self.asked += 1
            if self.away:
                raise OSError("away")
            return await super().policy(name)

    kube = Deaf([(Kind.DISPATCH, made({CREATOR_ANNOTATION: "alice"}))])

    def status() -> Manifest:
        found: Manifest = kube.find(Kind.DISPATCH, "pilot", "peak").get("status", {})
        return found

    async with operator(kube, tmp_path):
        await until(lambda: kube.asked > 2)
        assert "createdBy" not in status()
        kube.away = False
        await until(status)

    assert status()["createdBy"] == "alice"
