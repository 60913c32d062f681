"""By which request a dispatch was ordered: a hint, read with a bound, told to all that follow."""

from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.operator.making import T0, asset, dispatch
from tests.operator.test_creators import made

from derops_operator.gateways.assignment import submit
from derops_operator.gateways.desired import Desired
from derops_operator.gateways.history import history_messages
from derops_operator.reconciling.actions import Submit
from derops_operator.resources.dispatches import REQUEST_ID_ANNOTATION, Dispatch
from derops_operator.resources.instants import format_second
from derops_operator.resources.manifests import read_fact
from derops_operator.resources.objects import Kind

ID = "7f0e6a5c-1d2e-4f3a-9b8c-0a1b2c3d4e5f"
LINE = {"phase": "Submitted", "reason": "New", "message": "", "at": format_second(T0)}


def ordered(**others: Any) -> Dispatch:
    return replace(dispatch(**others), request_id=ID)


def read(annotations: Any) -> Dispatch:
    fact = read_fact(Kind.DISPATCH, made(annotations), T0)
    assert isinstance(fact, Dispatch)
    return fact


def test_it_is_read_as_it_is() -> None:
    assert read({REQUEST_ID_ANNOTATION: ID}).request_id == ID
    assert read({REQUEST_ID_ANNOTATION: "Build_4.711"}).request_id == "Build_4.711"


@pytest.mark.parametrize("annotations", [None, {}, {"others": "x"}])
def test_a_dispatch_that_says_none_has_none(annotations: Any) -> None:
    assert read(annotations).request_id == ""


def test_gateways_are_told_and_a_later_annotation_sends_nothing_anew() -> None:
    desired = Desired(operator_start_ms=1)
    submit(desired, ordered(), asset(), Submit())
    version = desired.version

    submit(desired, replace(dispatch(), request_id="another"), asset(), Submit())

    assert desired.version == version
    (message,) = [each.dispatch for each in drain(desired) if each.HasField("dispatch")]
    assert message.request_id == ID


@pytest.mark.parametrize(("creator", "told"), [("alice", ID), ("unknown", "")])
def test_the_history_is_told_where_somebody_is_known_to_have_ordered_it(
    creator: str, told: str
) -> None:
    status = {"createdBy": creator, "history": [{**LINE, "actor": "Operator"}]}

    (message,) = history_messages(ordered(status=status), asset())

    assert message.request_id == told


def test_that_it_was_given_to_gateways_and_withdrawn_is_told_once() -> None:
    desired = Desired(operator_start_ms=1)
    with capture_logs() as lines:
        for action in (Submit(), Submit(), *2 * [Submit(cancelled=True, cancel_reason="Why")]):
            submit(desired, ordered(), asset(), action)

    assert [line["event"] for line in lines] == ["dispatch.submitted", "dispatch.withdrawn"]
    for line in lines:
        assert (line["namespace"], line["asset"]) == ("pilot", "battery")
        assert (line["dispatch"], line["dispatch_uid"]) == ("peak", "uid-peak")
        assert line["request_id"] == ID


def test_an_operator_that_starts_anew_does_not_tell_it_again() -> None:
    timeline = {"timeline": {"submittedAt": format_second(T0)}, "phase": "Sent"}
    with capture_logs() as lines:
        submit(Desired(operator_start_ms=2), ordered(status=timeline), asset(), Submit())

    assert lines == []


def drain(desired: Desired) -> list[Any]:
    subscription = desired.subscribe()
    subscription.most = 100
    return subscription.take()
