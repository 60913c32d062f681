"""One life of the operator's process: its core, run in the time of the histories."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from kubernetes.aio.client.exceptions import ApiException
from tests.lifecycle.cluster import Cluster
from tests.lifecycle.site import Fuse

from derops.lifecycle import Phase
from derops.observability import Readiness
from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2
from derops_operator.cluster.client import Manifest
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.cluster.troubles import Troubles
from derops_operator.core import Core, Ports
from derops_operator.reconciling.credibility import Strange
from derops_operator.reconciling.identity import Realm
from derops_operator.resources.certificates import Request
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.objects import Kind, Meta, ObjectKey

_REALM = Realm(trust_domain="derops.test", issuer="agents", requester="cert-manager")
_RETRY_SECONDS = 0.05
Answer = TypeVar("Answer")


class Way:
    """How the API server answers: at once, not before it is let go on, or not at all."""

    def __init__(self) -> None:
        self.holds = False
        self.loses_answers = False
        """Whether it does what it is asked for, and nobody hears that it did."""

        self.refuses: Kind | None = None
        """On which kind it takes no finalizer, as an admission webhook may have it."""

        self.waiting = 0
        """Calls that have no answer yet."""

    async def pass_by(self) -> None:
        """Wait for a turn of the loop, and until nothing holds the call."""
        await asyncio.sleep(0)
        self.waiting += 1
        try:
            while self.holds:
                await asyncio.sleep(0)
        finally:
            self.waiting -= 1


class Api:
    """The API server as one process reaches it: that may end before or after each change."""

    def __init__(
        self,
        cluster: Cluster,
        fuse: Fuse,
        way: Way,
        check: Callable[[], None],
    ) -> None:
        self._cluster, self._fuse, self._way, self._check = cluster, fuse, way, check

    async def read(self, kind: Kind, namespace: str, name: str) -> Manifest:
        return self._cluster.read(ObjectKey(kind, namespace, name))

    async def set_finalizer(self, kind: Kind, meta: Meta, *, present: bool) -> Manifest:
        if kind is self._way.refuses:
            raise ApiException(status=403, reason="refused by a webhook")
        return await self._do(lambda: self._cluster.set_finalizer(kind, meta, present=present))

    async def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, Any]) -> Manifest:
        return await self._do(lambda: self._cluster.patch_status(kind, meta, patch))

    async def delete(self, kind: Kind, meta: Meta) -> None:
        await self._do(lambda: self._cluster.delete_finished(kind, meta))

    async def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
        return await self._do(lambda: self._cluster.apply(kind, manifest))

    async def _do(self, call: Callable[[], Answer]) -> Answer:
        self._check()
        await self._way.pass_by()
        self._fuse.burn()
        answer = call()
        self._fuse.burn()
        if self._way.loses_answers:
            raise TimeoutError
        return answer


class Agenda:
    """A queue with the contract of ``WorkQueue``, in the time of the histories."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._due_us: dict[ObjectKey, int] = {}
        self._working: set[ObjectKey] = set()

    def __len__(self) -> int:
        return len(self._due_us)

    def add(self, key: ObjectKey) -> None:
        self._due_us[key] = 0

    def add_after(self, key: ObjectKey, seconds: float) -> None:
        due_us = self._now_us() + round(seconds * SECOND_US)
        self._due_us[key] = min(due_us, self._due_us.get(key, due_us))

    def add_failed(self, key: ObjectKey) -> float:
        self.add_after(key, _RETRY_SECONDS)
        return _RETRY_SECONDS

    def forget(self, key: ObjectKey) -> None:
        pass

    def done(self, key: ObjectKey) -> None:
        self._working.discard(key)

    def take_due(self) -> list[ObjectKey]:
        """Return the keys that are due, none of which is worked on; each is to be ``done``."""
        now_us = self._now_us()
        due = [
            key
            for key, due_us in self._due_us.items()
            if due_us <= now_us and key not in self._working
        ]
        for key in due:
            del self._due_us[key]
        self._working.update(due)
        return due


class Loud(Troubles):
    """Whatever the work on an object stumbles over ends the history."""

    def tell(
        self, kind: Kind, meta: Meta, problem: str, failure: BaseException | None = None
    ) -> None:
        raise failure or AssertionError(f"{kind} {meta.name}: {problem}")


class Guard:
    """Nobody forges who ordered a dispatch."""

    guarded_since_us: int | None = 0

    async def look(self) -> None:
        pass


class Operator:
    """All it knows is what it lists and what gateways say."""

    def __init__(
        self,
        cluster: Cluster,
        gateways: int,
        now_us: Callable[[], int],
        on_history: Callable[[control_pb2.HeadendTransition], None],
        era: int = 0,
    ) -> None:
        self.fuse = Fuse()
        self.way = Way()
        self._cluster, self._now_us = cluster, now_us
        self._work, self._publishing = Agenda(now_us), Agenda(now_us)
        self._tasks: set[asyncio.Task[None]] = set()
        self._given: set[str] = set()
        self.record = on_history
        api: Any = Api(cluster, self.fuse, self.way, self.check)
        events = EventWriter(api)
        ports = Ports(
            api=api,
            status_bucket=TokenBucket(1e9, 1e9),
            events=events,
            troubles=Loud(events, Readiness()),
            guard=Guard(),
            listener=self,
            work=self._work,
            publishing=self._publishing,
            now_us=now_us,
        )
        self.core = Core(ports, _REALM, asset_grace_us=60 * SECOND_US, era=era)
        self.fleet, self.desired = self.core.fleet, self.core.desired
        self.fleet.expected = gateways
        cluster.changes.clear()
        for kind, manifest in cluster.list_all():
            self.core.take(kind, manifest)
        self.core.load()

    # What the core has to tell others

    def note_request(self, request: Request) -> None:
        pass

    def note_namespace(self, namespace: str) -> None:
        pass

    def hear(self, replica: str, message: control_pb2.ReplicaMessage) -> None:
        """Take what a replica says after its hello."""
        kind = message.WhichOneof("kind")
        if kind == "accepted_version":
            self.fleet.note_accepted(replica, message.accepted_version, self._now_us())
            self.core.note_accepted()
        elif kind == "session":
            ledger = self.desired.ledger_of(message.session.asset_uid)
            seen = self.fleet.note_session(replica, message.session, ledger, self._now_us())
            if seen is not None:
                self.desired.tell(control_pb2.OperatorMessage(epoch_seen=seen))
            self.core.note_news(message.session.asset_uid)
        elif kind == "delivery":
            self.fleet.note_delivery(replica, message.delivery)
            self.core.note_news(message.delivery.dispatch_uid)
        elif kind == "report":
            self._hear_report(message.report)

    def _hear_report(self, message: control_pb2.AgentReport) -> None:
        strange = self.core.distrust(message)
        assert strange in {None, Strange.UNKNOWN_DISPATCH}, f"{strange}: {message}"
        if strange is None and self.fleet.note_report(message):
            self.core.note_news(message.report.dispatch_uid)

    # Its work

    async def run(self) -> bool:
        """Hear of changes and work off what is due; return whether there was anything."""
        some = bool(self._cluster.changes)
        while self._cluster.changes:
            key, uid, manifest = self._cluster.changes.popleft()
            if manifest is None:
                self.core.drop(key, uid)
            else:
                self.core.take(key.kind, manifest)
        # What is to be stored may have been decided before what was heard since: that comes first.
        some = self._begin(self._publishing, self.core.publish) or some
        some = self._begin(self._work, self.core.reconcile) or some
        await self._rest()
        self.check()
        return some

    def _begin(self, queue: Agenda, step: Callable[[ObjectKey], Awaitable[None]]) -> bool:
        due = queue.take_due()
        self._tasks |= {asyncio.create_task(self.core.work(queue, key, step)) for key in due}
        return bool(due)

    async def _rest(self) -> None:
        """Let the tasks go on until each has ended or waits for the API server."""
        while True:
            for task in [each for each in self._tasks if each.done()]:
                self._tasks.discard(task)
                task.result()
            if not self._tasks or (self.way.holds and self.way.waiting == len(self._tasks)):
                return
            await asyncio.sleep(0)

    async def kill(self) -> None:
        """End the process; what the API server was not told is not done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def check(self) -> None:
        """Hold what gateways are given against what is stored: the order of actions."""
        for each in self._cluster.dispatches.values():
            uid, ended = each.meta.uid, each.phase.terminal
            held = self.desired.asset_uid_of(uid) is not None
            assert ended or not held or each.meta.holds_finalizer, f"given, and not held: {each}"
            assert ended or held or uid not in self._given, f"settled before its end: {each}"
            if held:
                self._given.add(uid)
        if not self._cluster.changes:
            stored = {each.meta.uid for each in self._cluster.dispatches.values()}
            left = [uid for uid in self._given - stored if self.desired.asset_uid_of(uid)]
            assert not left, f"gone, and gateways were not told: {left}"


def has_ended(dispatch: Dispatch) -> bool:
    """Tell whether a dispatch has a terminal phase in its status."""
    return Phase(dispatch.status.get("phase") or Phase.SUBMITTED).terminal
