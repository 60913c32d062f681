"""Status writes: what goes over the wire, and what does not."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.making import Story, acked, active, asset, at, dispatch, ended, holding, view
from tests.operator.test_assets import after, decide
from tests.operator.test_events import queued

from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.status_writer import StatusWriter, is_worth_writing, merge_patch
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.reconciling.dispatches import reconcile_dispatch
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.objects import Kind, Meta, ObjectKey
from derops_operator.workqueue import WorkQueue

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


class SlowKube:
    """Stores a status; the controller looks at the dispatch again meanwhile."""

    def __init__(self) -> None:
        self.writes = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, Any]) -> Any:
        self.writes += 1
        self.meanwhile()
        return {"metadata": {"resourceVersion": "11"}, "status": patch}


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


class Rig:
    """One object, its status writer, and what is stored."""

    def __init__(
        self,
        kube: FakeKube | SlowKube,
        subject: Asset | Dispatch,
        bucket: TokenBucket | None = None,
    ) -> None:
        self.cache = Cache()
        kind = Kind.ASSET if isinstance(subject, Asset) else Kind.DISPATCH
        self.key = ObjectKey(kind, subject.meta.namespace, subject.meta.name)
        self.cache.put(kind, subject)
        self.events = EventWriter(kube)  # type: ignore[arg-type]
        self.writer = StatusWriter(
            kube,  # type: ignore[arg-type]
            bucket or TokenBucket(1000, 1000),
            self.cache,
            self.events,
            self.take,
            WorkQueue(),
        )

    def take(self, kind: Kind, manifest: Mapping[str, Any]) -> None:
        """Keep what a write returned: the version, and what of the status the server keeps."""
        known = self.cache.fact(self.key)
        assert isinstance(known, Asset | Dispatch)
        meta = replace(known.meta, resource_version=manifest["metadata"]["resourceVersion"])
        status = {**known.status, **manifest.get("status", {})}
        self.cache.put(kind, replace(known, meta=meta, status=status))

    async def write(self, status: dict[str, Any]) -> None:
        self.writer.want(self.key, status)
        await self.writer.publish(self.key)


async def test_only_what_differs_is_written() -> None:
    kube = FakeKube()
    rig = Rig(kube, asset(status={"capability": {"driver": "a"}, "odd": 1, "even": 2}))

    await rig.write({"capability": {"driver": "b"}, "even": 2})
    assert kube.patches == [{"capability": {"driver": "b"}, "odd": None}]


async def test_what_is_stored_already_is_not_written() -> None:
    kube = FakeKube()
    rig = Rig(kube, asset(status={"odd": 1}))

    await rig.write({"odd": 1})
    assert kube.patches == []


async def test_what_is_wanted_no_more_is_not_written() -> None:
    kube = FakeKube()
    rig = Rig(kube, asset(status={"odd": 1}))
    rig.writer.want(rig.key, {"odd": 2})

    await rig.write({"odd": 1})
    assert kube.patches == []


async def test_a_field_that_the_server_drops_is_not_written_for_ever() -> None:
    kube = FakeKube()
    rig = Rig(kube, asset())

    await rig.write({"odd": 1})
    await rig.write({"odd": 1})
    assert kube.patches == [{"odd": 1}]


async def test_a_field_that_the_server_dropped_from_another_version_is_written() -> None:
    kube = FakeKube()
    rig = Rig(kube, asset())
    await rig.write({"odd": 1})

    rig.take(Kind.ASSET, {"metadata": {"resourceVersion": "20"}})
    await rig.write({"odd": 1})
    assert kube.patches == [{"odd": 1}] * 2


@pytest.mark.parametrize("failure", [ChangedMeanwhileError("409"), GoneError("404")])
async def test_a_refused_write_is_the_callers_to_decide_anew(failure: Exception) -> None:
    kube = FakeKube()
    kube.failure = failure
    rig = Rig(kube, asset())

    with pytest.raises(type(failure)):
        await rig.write({"odd": 1})

    kube.failure = None
    await rig.write({"odd": 1})
    assert kube.patches == [{"odd": 1}] * 2


async def test_a_forgotten_object_starts_anew() -> None:
    kube = FakeKube()
    rig = Rig(kube, asset())
    await rig.write({"odd": 1})

    rig.writer.forget(rig.key)
    await rig.write({"odd": 1})
    assert kube.patches == [{"odd": 1}] * 2


async def test_an_end_that_is_decided_again_while_it_is_stored_is_stored_once() -> None:
    story = Story(dispatch(submitted=True)).look(1)
    submitted, unsent = story.dispatch, view(holding(written_us=0))
    kube = SlowKube()
    rig = Rig(kube, submitted)

    def decide_end(seconds: int) -> None:
        decision = reconcile_dispatch(submitted, story.asset, unsent, at(seconds))
        assert decision.status["phase"] == "Expired"
        rig.writer.want(rig.key, decision.status)

    decide_end(200)
    kube.meanwhile = lambda: decide_end(201)
    await rig.writer.publish(rig.key)
    await rig.writer.publish(rig.key)

    assert kube.writes == 1


async def test_what_is_not_known_of_an_asset_is_told_once_it_is_stored() -> None:
    subject, flying = asset(operatingState="OutOfService"), dispatch(submitted=True)
    subject = after(subject, decide(subject, seconds=1, dispatches=[flying]))
    rig = Rig(SlowKube(), subject)

    rig.writer.want(rig.key, decide(subject, seconds=70, dispatches=[flying]).status)
    assert queued(rig.events) == []

    await rig.writer.publish(rig.key)
    assert queued(rig.events) == [("Warning", "RevertUnknown")]


def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    now = [0.0]
    bucket = TokenBucket(50, 2, clock=lambda: now[0])

    assert [bucket.reserve() for _ in range(4)] == pytest.approx([0, 0, 0.02, 0.04])
    now[0] = 1.0
    assert bucket.reserve() == 0


def test_what_is_to_spare_leaves_a_burst_to_others() -> None:
    now = [0.0]
    bucket = TokenBucket(50, 100, clock=lambda: now[0])

    taken = [bucket.reserve_spare(50, 10) for _ in range(60)]
    assert taken[:50] == [0] * 50
    assert min(taken[50:]) > 0
    assert [bucket.reserve() for _ in range(50)] == [0] * 50


def spared_in(seconds: int, others_a_second: int) -> tuple[int, float]:
    """Return how many spare tokens are had, and how long others wait at most at the end."""
    now, spared, waits = [0.0], 0, [0.0]
    bucket = TokenBucket(50, 100, clock=lambda: now[0])
    for step in range(seconds * 1000):
        now[0] = step / 1000
        if others_a_second and step % (1000 // others_a_second) == 0:
            waits.append(bucket.reserve())
        while bucket.reserve_spare(50, 10) == 0:
            spared += 1
    return spared, max(waits)


def test_what_is_to_spare_is_all_that_others_leave() -> None:
    spared, waits = spared_in(60, others_a_second=0)
    assert 3000 <= spared <= 3051
    assert waits == 0

    spared, waits = spared_in(60, others_a_second=20)
    assert 1800 <= spared <= 1851
    assert waits == 0


def test_a_promised_few_are_had_however_many_others_take() -> None:
    spared, waits = spared_in(60, others_a_second=100)

    assert 590 <= spared <= 652
    assert waits > 10, "and the others wait: that is what it is about"


async def test_statuses_of_assets_leave_those_of_dispatches_a_burst() -> None:
    kube = FakeKube()
    frozen = TokenBucket(50, 100, clock=lambda: 0.0)
    rig = Rig(kube, asset(), frozen)
    for number in range(50):
        rig.cache.put(Kind.ASSET, asset())
        await rig.write({"odd": number})
    waiting = asyncio.create_task(rig.write({"odd": 50}))
    await asyncio.sleep(0)
    assert len(kube.patches) == 50

    other = Rig(kube, dispatch(submitted=True), frozen)
    for number in range(50):
        other.cache.put(Kind.DISPATCH, dispatch(submitted=True))
        await asyncio.wait_for(other.write({"phase": "Submitted", "odd": number}), 5)
    assert len(kube.patches) == 100
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


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
