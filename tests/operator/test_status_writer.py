"""Status writes: what goes over the wire, and what does not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.making import Story, acked, active, dispatch, ended, view

from derops_operator.cluster.client import ChangedMeanwhileError, GoneError
from derops_operator.cluster.status_writer import (
    StatusWriter,
    TokenBucket,
    is_worth_writing,
    merge_patch,
)
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.objects import Kind, Meta, ObjectKey

TREES = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=2), TREES, max_size=4)


class FakeKube:
    """Stores a status by merge patch and can be told to fail once."""

    def __init__(self) -> None:
        self.patches: list[Mapping[str, Any]] = []
        self.failure: Exception | None = None
        self.version = 10

    async def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, Any]) -> Any:
        self.patches.append(patch)
        if self.failure is not None:
            raise self.failure
        self.version += 1
        return {"metadata": {"resourceVersion": str(self.version)}}


def apply(stored: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    """Do what RFC 7386 says."""
    target = dict(stored) if isinstance(stored, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, Mapping):
            target[name] = apply(target.get(name), value)
        else:
            target[name] = value
    return target


@given(OBJECTS, OBJECTS)
def test_a_patch_makes_the_wanted_of_the_stored(
    stored: dict[str, Any], wanted: dict[str, Any]
) -> None:
    patch = merge_patch(stored, wanted)

    result = apply(stored, patch)
    assert _pruned(result) == _pruned(wanted)
    assert merge_patch(wanted, wanted) == {}


def _pruned(value: Any) -> Any:
    """Drop empty objects: a merge patch cannot tell an empty object from an absent one."""
    if not isinstance(value, Mapping):
        return value
    inner = {name: _pruned(each) for name, each in value.items()}
    return {name: each for name, each in inner.items() if each != {}}


def writer(kube: FakeKube) -> StatusWriter:
    return StatusWriter(kube, TokenBucket(1000, 1000))  # type: ignore[arg-type]


async def test_only_what_differs_is_written() -> None:
    kube = FakeKube()
    subject = dispatch(status={"phase": "Sent", "reason": "x", "message": "y"})

    await writer(kube).write(Kind.DISPATCH, subject, {"phase": "Acked", "reason": "x"})

    assert kube.patches == [{"phase": "Acked", "message": None}]


async def test_what_is_stored_already_is_not_written() -> None:
    kube = FakeKube()
    subject = dispatch(status={"phase": "Sent"})

    assert await writer(kube).write(Kind.DISPATCH, subject, {"phase": "Sent"}) is None
    assert kube.patches == []


async def test_a_field_that_the_server_drops_is_not_written_for_ever() -> None:
    kube = FakeKube()
    subject, statuses = dispatch(status={}), writer(kube)
    await statuses.write(Kind.DISPATCH, subject, {"odd": 1})
    same = _with_version(subject, str(kube.version))

    assert await statuses.write(Kind.DISPATCH, same, {"odd": 1}) is None
    assert len(kube.patches) == 1


@pytest.mark.parametrize("failure", [ChangedMeanwhileError("409"), GoneError("404")])
async def test_a_refused_write_is_the_callers_to_decide_anew(failure: Exception) -> None:
    kube = FakeKube()
    kube.failure = failure
    subject, statuses = dispatch(), writer(kube)

    with pytest.raises(type(failure)):
        await statuses.write(Kind.DISPATCH, subject, {"phase": "Sent"})

    kube.failure = None
    assert await statuses.write(Kind.DISPATCH, subject, {"phase": "Sent"}) is not None


async def test_a_forgotten_object_starts_anew() -> None:
    kube = FakeKube()
    subject, statuses = dispatch(), writer(kube)
    await statuses.write(Kind.DISPATCH, subject, {"odd": 1})
    statuses.forget(ObjectKey(Kind.DISPATCH, "pilot", "peak"))

    same = _with_version(subject, str(kube.version))
    assert await statuses.write(Kind.DISPATCH, same, {"odd": 1}) is not None


def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    now = [0.0]
    bucket = TokenBucket(50, 2, clock=lambda: now[0])

    assert [bucket.reserve() for _ in range(4)] == pytest.approx([0, 0, 0.02, 0.04])
    now[0] = 1.0
    assert bucket.reserve() == 0


def test_running_counters_alone_are_not_worth_a_write() -> None:
    story = Story().look(0.1).look(3, view(report=active(), received_us=5))
    stored = story.status

    story.look(4, view(report=active(active_milliseconds=2000), received_us=6))
    assert not is_worth_writing(stored, story.status)

    story.look(5, view(report=active(verified="True", verified_us=7)))
    assert is_worth_writing(stored, story.status)


def test_a_whole_life_with_every_step_apart_costs_five_writes() -> None:
    story, writes = Story(), 0
    stored: dict[str, Any] = {}
    looks = [
        (0.1, view()),
        (1, view(report=acked())),
        (2, view(report=active())),
        *((2 + step, view(report=active(active_milliseconds=step))) for step in range(1, 60)),
        (70, view(report=active(verified="True", verified_reason="EffectWithinTolerance"))),
        (101, view(report=ended(verified="True"))),
        (102, view(report=ended(verified="True"))),
    ]
    for seconds, seen in looks:
        story.look(seconds, seen)
        if is_worth_writing(stored, story.status):
            writes, stored = writes + 1, story.status

    assert writes == 5


def _with_version(subject: Dispatch, version: str) -> Dispatch:
    return replace(subject, meta=replace(subject.meta, resource_version=version))
