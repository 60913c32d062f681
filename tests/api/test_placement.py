"""One order for one key, whatever fails and whenever it is repeated.

The world here is a model of the audit and of Kubernetes with all that may go wrong between them;
tests on the real parts show that they are as the model says.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derops_headend.api.call import Call
from derops_headend.api.caller import Caller, CallerKind
from derops_headend.api.orders import NewDispatch
from derops_headend.api.placement import UNDER_WAY_SECONDS, Asked, Placed, Placing
from derops_headend.api.ports import Existence, Manifest, Used
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.refusals import unanswered

ORDER = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}


class KilledError(BaseException):
    """The replica is gone; nobody answers."""


@dataclass
class World:
    """What outlives every replica."""

    now: datetime = datetime(2026, 12, 1, tzinfo=UTC)
    announced: list[tuple[str, Used]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    objects: dict[str, Manifest] = field(default_factory=dict)
    made: list[Manifest] = field(default_factory=list)
    """Each was given to the device."""

    remembers: bool = True
    database: bool = True
    fault: str = ""
    """What happens to the next call."""

    reviewed: set[str] = field(default_factory=set)
    """Requests whose caller may."""

    hangs: bool = False
    """The database neither answers nor refuses."""

    requests: int = 0
    meanwhile: Callable[[], Awaitable[object]] | None = None
    """Done by others while the next announcement is written down."""

    def take(self, *faults: str) -> str:
        if self.fault in faults:
            fault, self.fault = self.fault, ""
            return fault
        return ""

    # Rights

    async def require(self, call: Call, *, fresh: bool = False) -> None:
        assert fresh
        for _ in range(5):  # the answer about the key comes first
            await asyncio.sleep(0)
        if self.take("forbidden"):
            raise ProblemError(Slug.FORBIDDEN, "no")
        self.reviewed.add(call.request_id)

    # The audit

    async def announce(self, call: Call) -> None:
        assert call.request_id in self.reviewed
        if self.take("audit away"):
            raise ProblemError(Slug.AUDIT_UNAVAILABLE, "no")
        if self.take("audit slow"):
            self.now += timedelta(seconds=30)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        subject = call.subject
        used = Used(
            call.request_id, self.now, subject.name, "", subject.body_sha256, dict(subject.change)
        )
        self.announced.append((subject.idempotency_key_sha256, used))
        if self.take("killed after announcement"):
            raise KilledError

    async def complete(self, call: Call, status: int, reason: str, sent_bytes: int) -> None:
        if 400 <= status < 500:
            self.refused.add(call.request_id)
        self.announced = [
            (key, each._replace(object_uid=call.subject.object_uid))
            if each.request_id == call.request_id
            else (key, each)
            for key, each in self.announced
        ]

    async def find_key(self, caller: str, namespace: str, sha256: str) -> Used | None:
        if self.hangs:
            await asyncio.Event().wait()
        if not self.database:
            raise ProblemError(Slug.DATABASE_UNAVAILABLE, "no")
        found = [
            each
            for key, each in self.announced
            if key == sha256 and each.request_id not in self.refused
        ]
        return min(found, key=lambda each: (not each.object_uid, each.at), default=None)

    # Kubernetes

    def dispatch_version(self) -> str:
        return str(len(self.made))

    async def dispatch(self, namespace: str, name: str) -> Manifest | None:
        if self.take("read unanswered"):
            raise unanswered()
        await asyncio.sleep(0)
        return self.objects.get(name)

    async def create_dispatch(
        self, namespace: str, manifest: Manifest, *, dry_run: bool
    ) -> Manifest:
        fault = self.take(
            "create lost",
            "create unanswered",
            "killed before answer",
            "refused",
            "killed in create",
        )
        if fault == "create lost":
            raise unanswered(creating=True)
        if fault == "killed in create":
            raise KilledError
        if fault == "refused":
            raise ProblemError(Slug.INVALID, "no")
        await asyncio.sleep(0)
        name = manifest["metadata"]["name"]
        if name in self.objects:
            raise ProblemError(Slug.CONFLICT, "AlreadyExists")
        stored: Manifest = json.loads(json.dumps(manifest))
        stored["metadata"]["uid"] = f"uid-{len(self.made)}"
        self.objects[name] = stored
        self.made.append(stored)
        if fault == "create unanswered":
            raise unanswered(creating=True)
        if fault == "killed before answer":
            raise KilledError
        return stored

    async def life_of(self, namespace: str, name: str, since: str) -> Existence:
        if not self.remembers:
            return Existence.UNKNOWN
        later = self.made[int(since) :]
        was = any(each["metadata"]["name"] == name for each in later)
        return Existence.WAS_THERE if was else Existence.NEVER_WAS

    async def appears(self, namespace: str, name: str, within_seconds: float) -> bool:
        self.now += timedelta(seconds=within_seconds)
        return name in self.objects


class Client:
    """Repeats one call at whichever replica, and remembers what it was told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.replicas = [self._start(), self._start()]

    def _start(self) -> Placing:
        world: Any = self.world
        return Placing(world, world, world, lambda: self.world.now)

    async def call(self, replica: int = 0, order: dict[str, Any] | None = None) -> Placed:
        self.world.requests += 1
        call = Call(
            request_id=f"request-{self.world.requests}",
            received_at=self.world.now,
            caller=Caller(kind=CallerKind.KUBERNETES, name="alice"),
            method="POST",
            path="/",
            source="",
            user_agent="",
        )
        asked = Asked(
            call=call,
            namespace="pilot",
            order=NewDispatch.model_validate(order or ORDER),
            key="key",
        )
        try:
            placed = await self.replicas[replica].place(asked)
        except ProblemError as problem:
            await self.world.complete(call, problem.slug.status, problem.slug.slug, 0)
            raise
        except KilledError:
            self.replicas[replica] = self._start()
            raise
        if self.world.take("killed before record"):
            self.replicas[replica] = self._start()
            raise KilledError
        await self.world.complete(call, 201, "", 0)
        return placed


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


async def test_the_second_call_finds_what_the_first_made(world: World, client: Client) -> None:
    first, second = await client.call(), await client.call(1)
    assert (first.replayed, second.replayed) == (False, True)
    assert first.dispatch == second.dispatch
    assert len(world.made) == 1


@pytest.mark.parametrize(
    "fault",
    ["create lost", "killed in create", "killed after announcement", "audit slow"],
)
async def test_what_was_never_made_is_made_by_the_repetition_with_the_first_start(
    world: World, client: Client, fault: str
) -> None:
    world.fault = fault
    with pytest.raises((ProblemError, KilledError)):
        await client.call()
    start = world.announced[0][1].change["startTime"]
    with pytest.raises(ProblemError) as soon:
        await client.call(1)
    assert soon.value.slug is Slug.CONFLICT
    assert soon.value.retry_after_seconds
    world.now += timedelta(seconds=soon.value.retry_after_seconds)

    placed = await client.call(1)

    assert not placed.replayed
    assert placed.dispatch["spec"]["startTime"] == start
    assert len(world.made) == 1


@pytest.mark.parametrize("fault", ["create unanswered", "killed before answer"])
@pytest.mark.parametrize("remembers", [True, False])
async def test_what_was_made_and_deleted_without_an_answer_is_not_made_again(
    world: World, client: Client, fault: str, remembers: bool
) -> None:
    world.fault = fault
    with pytest.raises((ProblemError, KilledError)):
        await client.call()
    world.objects.clear()
    world.remembers = remembers
    world.now += timedelta(seconds=UNDER_WAY_SECONDS + 1)

    with pytest.raises(ProblemError) as refused:
        await client.call(1)

    assert refused.value.slug is Slug.KEY_EXPIRED
    assert len(world.made) == 1


async def test_what_nobody_can_know_is_not_made(world: World, client: Client) -> None:
    world.fault = "killed after announcement"
    with pytest.raises(KilledError):
        await client.call()
    world.remembers = False
    world.now += timedelta(days=1)

    with pytest.raises(ProblemError) as refused:
        await client.call()

    assert refused.value.slug is Slug.KEY_EXPIRED
    assert not world.made


async def test_without_the_database_only_what_is_there_is_found(
    world: World, client: Client
) -> None:
    first = await client.call()
    world.database = False
    assert (await client.call(1)).dispatch == first.dispatch
    with pytest.raises(ProblemError) as other:
        await client.call(1, {**ORDER, "durationSeconds": 5})
    assert other.value.slug is Slug.DATABASE_UNAVAILABLE
    world.objects.clear()
    with pytest.raises(ProblemError) as gone:
        await client.call(1)
    assert gone.value.slug is Slug.DATABASE_UNAVAILABLE
    assert len(world.made) == 1


async def test_what_somebody_made_for_another_time_is_not_taken_for_it(
    world: World, client: Client
) -> None:
    """R168: where no policy guards annotations, an author copies an order, but for its start."""
    order = {**ORDER, "startTime": "2026-12-01T18:00:00Z"}
    placed = await client.call(order=order)
    (name,) = world.objects
    copied: Manifest = json.loads(json.dumps(placed.dispatch))
    copied["metadata"]["uid"] = "another"
    world.objects[name] = copied
    world.database = False

    assert (await client.call(order=order)).dispatch == copied
    copied["spec"]["startTime"] = "2026-12-01T03:00:00Z"
    with pytest.raises(ProblemError) as told:
        await client.call(order=order)
    assert told.value.slug is Slug.DATABASE_UNAVAILABLE


async def test_two_replicas_at_once_make_one(world: World, client: Client) -> None:
    answers = await asyncio.gather(
        *(client.call(number % 2) for number in range(50)), return_exceptions=True
    )
    placed = [each for each in answers if isinstance(each, Placed)]
    assert len(placed) == 50
    assert {each.dispatch["metadata"]["uid"] for each in placed} == {"uid-0"}
    assert [each.replayed for each in placed].count(False) == 1
    assert len(world.announced) <= 2  # of one replica those with the same key take turns


@pytest.mark.parametrize("database", ["there", "away", "hangs"])
async def test_whoever_may_not_is_told_nothing_of_a_key(
    world: World, client: Client, database: str
) -> None:
    await client.call()
    world.database, world.hangs = database == "there", database == "hangs"
    for order in (ORDER, {**ORDER, "durationSeconds": 5}):
        world.fault = "forbidden"
        with pytest.raises(ProblemError) as refused:
            await asyncio.wait_for(client.call(1, order), 20)
        assert refused.value.slug is Slug.FORBIDDEN
    assert len(world.announced) == 1


async def test_whoever_may_not_makes_nothing(world: World, client: Client) -> None:
    world.fault = "forbidden"
    with pytest.raises(ProblemError) as refused:
        await client.call()
    assert refused.value.slug is Slug.FORBIDDEN
    assert not world.announced
    assert not world.made
    assert not (await client.call()).replayed


async def test_another_replica_may_be_faster_and_its_dispatch_deleted_meanwhile(
    world: World, client: Client
) -> None:
    async def other() -> None:
        await client.call(1)
        world.objects.clear()

    world.meanwhile = other

    with pytest.raises(ProblemError) as refused:
        await client.call(0)

    assert refused.value.slug is Slug.KEY_EXPIRED
    assert len(world.made) == 1


FAULTS = [
    "",
    "create lost",
    "create unanswered",
    "killed after announcement",
    "killed before answer",
    "killed before record",
    "killed in create",
    "read unanswered",
    "refused",
    "forbidden",
    "audit away",
    "audit slow",
]


@settings(max_examples=400)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(FAULTS),
            st.integers(0, 1),
            st.sampled_from(["", "delete", "forget", "database away", "database back"]),
            st.integers(0, 40),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_fails_a_repeated_call_makes_at_most_one(
    steps: list[tuple[str, int, str, int]],
) -> None:
    world = World()
    client = Client(world)

    async def play() -> None:
        for fault, replica, event, seconds in steps:
            world.fault = fault
            with suppress(ProblemError, KilledError):
                await client.call(replica)
            world.fault = ""
            if event == "delete":
                world.objects.clear()
            elif event == "forget":
                world.remembers = False
            elif event.startswith("database"):
                world.database = event == "database back"
            world.now += timedelta(seconds=seconds)
            assert len(world.made) <= 1

        deleted = bool(world.made) and not world.objects
        world.database = True
        world.now += timedelta(seconds=UNDER_WAY_SECONDS + 1)
        with suppress(ProblemError):
            await client.call()
        assert len(world.made) <= 1
        assert deleted or not world.remembers or len(world.made) == 1

    asyncio.run(play())
