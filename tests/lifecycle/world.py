"""Operator, two gateways, one agent and its device in one virtual time, and what befalls them."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lifecycle.checking import SAVED_EVERY_SECONDS, Checker
from tests.lifecycle.cluster import SERIAL, Cluster
from tests.lifecycle.links import ControlLink, Gateway, Stream
from tests.lifecycle.operating import Operator, has_ended
from tests.lifecycle.site import PowerCutError, Site

from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_agent.asset.inbox import Snapshot
from derops_agent.execution.state import Stage
from derops_headend.fleet.sessions import EpochTooHighError, EpochTooLowError, Session
from derops_operator.resources.instants import format_second
from derops_operator.resources.objects import Kind

T0 = 1_800_000_000 * SECOND_US
GATEWAYS = 2
_PASSES = 200
_MAX_TURNS_IN_A_SECOND = 50
_SLACK_SECONDS = 200


@dataclass(slots=True)
class Way:
    """How a link is: held back, or cut and not made again."""

    holds_down: bool = False
    holds_up: bool = False
    cut: bool = False
    stalls: bool = False
    """Whether what the gateway has for the agent waits for its turn to be written."""


@dataclass(slots=True)
class Ways:
    """All links, each from one end to the other."""

    control: list[Way] = field(default_factory=lambda: [Way() for _ in range(GATEWAYS)])
    agent: list[Way] = field(default_factory=lambda: [Way() for _ in range(GATEWAYS)])


class World:
    """Everything there is. Each method is one thing that happens."""

    def __init__(self, folder: Path, **device: Any) -> None:
        self.now_us = T0
        self.ways = Ways()
        self.cluster = Cluster(self._now, self._on_status)
        self.site = Site(folder, self._now, self._on_report, **device)
        self.checker = Checker(self.site, self._now)
        self.gateways = [Gateway(number, folder, self._now) for number in range(GATEWAYS)]
        self.operator: Operator | None = None
        self.era = 0
        self.controls: list[ControlLink | None] = [None] * GATEWAYS
        self.stream: Stream | None = None
        self.forgotten: list[Stream] = []
        """Streams that the agent has left and a gateway still believes in."""

        self._next_gateway = 0

    async def begin(self) -> None:
        """Start all parts and connect them."""
        for gateway in self.gateways:
            await self._start_gateway(gateway)
        await self.start_operator()
        await self.start_agent()
        await self.advance(2)

    async def end(self) -> None:
        """Stop what runs."""
        await self.kill_operator()
        for gateway in self.gateways:
            await gateway.kill()
        self.site.close()

    # What people do

    def apply(self, name: str, start_seconds: int, **spec: Any) -> None:
        """Create a Dispatch."""
        start = format_second(self.now_us + start_seconds * SECOND_US)
        dispatch = self.cluster.create(name, startTime=start, **spec)
        self.checker.expect(dispatch)

    def cancel(self, name: str) -> None:
        """Withdraw a Dispatch."""
        dispatch = self.cluster.dispatches.get(name)
        if dispatch is not None:
            self.checker.withdraw(dispatch.meta.uid)
            self.cluster.change(name, desiredState="Cancelled")

    def delete(self, name: str) -> None:
        """Delete a Dispatch."""
        dispatch = self.cluster.dispatches.get(name)
        if dispatch is not None:
            self.checker.withdraw(dispatch.meta.uid)
            self.cluster.delete(name)

    def change_asset(self, **spec: Any) -> None:
        """Change fields of the asset's spec."""
        if "operatingState" in spec:
            for dispatch in self.cluster.dispatches.values():
                self.checker.withdraw(dispatch.meta.uid)
        self.cluster.change_asset(**spec)
        self.site.seen_us["policy"] = self.now_us

    # What befalls the programs

    async def start_operator(self) -> None:
        """Start the operator, in the place of one that runs."""
        await self.kill_operator()
        self.now_us += 10_000  # a process does not start twice in one moment
        self.site.pass_us(10_000)
        self.operator = Operator(
            self.cluster, GATEWAYS, self._now, self.checker.hear_history, self.era
        )

    async def begin_era(self) -> None:
        """Start the operator with a higher era, as after a poisoned state."""
        self.era = self.now_us // SECOND_US
        await self.start_operator()

    async def kill_operator(self) -> None:
        """End the operator."""
        self._cut_controls()
        if self.operator is not None:
            await self.operator.kill()
        self.operator = None

    async def kill_gateway(self, number: int, *, lose_disk: bool = False) -> None:
        """End a gateway; all its streams with it."""
        self.cut_control(number)
        if self.stream is not None and self.stream.gateway is self.gateways[number]:
            self.cut_stream()
        self.forgotten = [s for s in self.forgotten if s.gateway is not self.gateways[number]]
        await self.gateways[number].kill(lose_disk=lose_disk)

    async def start_what_is_down(self) -> None:
        """Start operator, gateways and agent where they do not run."""
        if self.site.controller is None:
            await self.start_agent()
        if self.operator is None:
            await self.start_operator()
        for gateway in self.gateways:
            if gateway.exchange is None:
                await self._start_gateway(gateway)

    async def _start_gateway(self, gateway: Gateway) -> None:
        await gateway.start()
        self.checker.forget_before(gateway.state_since_us)

    async def start_agent(self) -> None:
        """Start the agent; the power may go again meanwhile."""
        try:
            await self.site.start()
        except PowerCutError:
            self.cut_power()
            return
        # What was stored, and not said before the end of the process, was decided by then.
        assert self.site.controller is not None
        for report in self.site.controller.journal.reports():
            self.checker.hear(report)

    def cut_power(self, *, lose_disk: bool = False) -> None:
        """End the agent's process at once."""
        self.cut_stream()
        self.checker.doubt(SAVED_EVERY_SECONDS)
        if lose_disk:
            self.checker.lose_disk()
            self.site.lose_disk()
        else:
            self.site.cut()

    # What befalls the links

    def mend_links(self) -> None:
        """Let all links be made again and hold nothing back."""
        self.ways = Ways()
        self.hold_api_server(False)
        self.lose_answers(False)
        self.refuse_finalizers(None)

    def hold_api_server(self, holds: bool) -> None:
        """Have the API server keep the operator waiting, or answer again."""
        if self.operator is not None:
            self.operator.way.holds = holds

    def lose_answers(self, loses: bool) -> None:
        """Have the API server do what the operator asks for, and the operator not hear of it."""
        if self.operator is not None:
            self.operator.way.loses_answers = loses

    def refuse_finalizers(self, kind: Kind | None) -> None:
        """Have the API server refuse the operator's finalizers on a kind; None = on none."""
        if self.operator is not None:
            self.operator.way.refuses = kind

    def cut_control(self, number: int) -> None:
        """Cut the operator off from a gateway."""
        link, self.controls[number] = self.controls[number], None
        if link is not None:
            link.close()

    def cut_stream(self, *, noticed: bool = True) -> None:
        """Cut the agent off; a gateway that does not notice believes in the stream."""
        stream, self.stream = self.stream, None
        if stream is None:
            return
        stream.left = True
        if noticed:
            stream.close()
        else:
            self.forgotten.append(stream)

    def disturb(self, queue: str, act: str, at: int, number: int) -> None:
        """Lose, repeat or move up one message that is on its way and held back."""
        link, stream = self.controls[number], self.stream
        waiting: deque[Any] | None = None
        if queue == "told" and link is not None:
            waiting = link.up
        elif queue == "reports" and stream is not None:
            waiting = stream.up
        elif queue == "orders" and stream is not None:
            waiting = stream.wire
        places = [i for i, each in enumerate(waiting or ()) if _may_be_disturbed(each)]
        if waiting is None or not places:
            return
        place = places[at % len(places)]
        message = waiting[place]
        if act == "drop":
            del waiting[place]
        elif act == "repeat":
            waiting.append(message)
        else:
            del waiting[place]
            waiting.insert(places[0], message)

    def _cut_controls(self) -> None:
        for number in range(GATEWAYS):
            self.cut_control(number)

    def step_clock(self, seconds: int) -> None:
        """Set the agent's wall clock."""
        self.site.clock.wall_us += seconds * SECOND_US
        self.site.seen_us["clock"] = self.now_us
        self.checker.doubt_clock(abs(seconds))

    # Time

    async def advance(self, seconds: float) -> None:
        """Let time pass; whatever is due happens when it is due."""
        end_us, turns = self.now_us + round(seconds * SECOND_US), 0
        while self.now_us < end_us:
            turns += 1
            assert turns < _MAX_TURNS_IN_A_SECOND * (1 + seconds), "the agent never rests"
            span_us = min(SECOND_US - self.now_us % SECOND_US, end_us - self.now_us)
            if self.site.controller is not None:
                span_us = min(span_us, self.site.due_us())
            self.now_us += span_us
            self.site.pass_us(span_us)
            if await self.site.land():
                self.checker.land_late()
            if self.now_us % SECOND_US == 0:
                await self._each_second()
            await self.flow()

    async def flow(self) -> None:
        """Let all that is not held back arrive, and all parts act on it."""
        for _ in range(_PASSES):
            if not await self._pass():
                return
        raise AssertionError("the parts never come to rest")

    async def _pass(self) -> bool:
        self._connect_controls()
        some = await self._act()
        for gateway in self.gateways:
            some = gateway.store() or some
        for number, link in enumerate(self.controls):
            if link is not None:
                some = await self._pass_control(number, link) or some
        if self.stream is not None:
            some = await self._pass_stream(self.stream) or some
        for stream in self.forgotten:
            if not self.ways.agent[self.gateways.index(stream.gateway)].stalls:
                await stream.write()  # into the void
        return some

    async def _act(self) -> bool:
        some = False
        for stream in [self.stream, *self.forgotten]:
            if stream is not None and not stream.ended:
                self.checker.give(stream.ledger_id)
        if self.operator is not None:
            try:
                some = await self.operator.run()
            except PowerCutError:
                await self.start_operator()
                some = True
        await self._run_agent()
        self.checker.look()
        return some

    async def _run_agent(self) -> None:
        if self.site.controller is None:
            return
        try:
            await self.site.turn()
        except PowerCutError:
            self.cut_power()

    async def _pass_control(self, number: int, link: ControlLink) -> bool:
        way, some = self.ways.control[number], False
        link.collect()
        while link.down and not way.holds_down and not link.ended:
            await link.pass_down()
            some = True
        while link.up and not way.holds_up:
            link.pass_up()
            some = True
        if link.ended:
            self.cut_control(number)
        return some

    async def _pass_stream(self, stream: Stream) -> bool:
        way = self.ways.agent[self.gateways.index(stream.gateway)]
        some = not way.stalls and await stream.write()
        while stream.wire and not way.holds_down and not stream.left:
            stream.read()
            some = True
        while stream.up and not way.holds_up:
            stream.pass_up()
            some = True
        over = stream.ended and (way.holds_down or not stream.wire)
        if over or stream.left:
            self.cut_stream()
        return some

    async def _each_second(self) -> None:
        if self.site.controller is None:
            return
        await self.site.sample()
        self._connect_agent()
        if self.stream is not None:
            way = self.ways.agent[self.gateways.index(self.stream.gateway)]
            if not way.holds_down and not way.holds_up:
                self._greet()

    def _greet(self) -> None:
        """A heartbeat that was answered: the gateway is there, and by how much the clock is off."""
        assert self.site.controller is not None
        self.site.controller.note_contact()
        if self.stream is not None:
            self.stream.heard_us = self.now_us
        offset_us = self.now_us - self.site.clock.wall_us
        self.site.controller.measure_offset(offset_us // 1000)
        if self.stream is not None:
            self.stream.clock_off_us = max(self.stream.clock_off_us, abs(offset_us))

    def _connect_controls(self) -> None:
        for number, gateway in enumerate(self.gateways):
            cut = self.ways.control[number].cut or gateway.exchange is None
            if self.operator is not None and self.controls[number] is None and not cut:
                self.controls[number] = ControlLink(self.operator, gateway)

    def _connect_agent(self) -> None:
        """Dial the next gateway that is there, as the agent's link does."""
        if self.stream is not None:
            return
        for _ in range(GATEWAYS):
            self._next_gateway = (self._next_gateway + 1) % GATEWAYS
            gateway = self.gateways[self._next_gateway]
            exchange = gateway.exchange
            if self.ways.agent[self._next_gateway].cut or exchange is None:
                continue
            if exchange.desired.revision is None:
                continue
            state = self.cluster.asset.operating_state
            if state != "InService" and not exchange.desired.dispatches_of("uid-battery"):
                continue
            self.stream = self._dial(gateway)
            self._greet()
            return

    def _dial(self, gateway: Gateway) -> Stream:
        assert self.site.controller is not None
        above = behind_ms = 0
        while True:
            epoch_ms = self.site.clock.wall_us // 1000 - behind_ms
            epoch = self.site.ledger.next_epoch(epoch_ms, above=above)
            session = Session(
                asset_uid="uid-battery",
                epoch=epoch,
                instance_id=f"instance-{self.site.processes}",
                serial_number=SERIAL,
                opened_us=self.now_us,
                since_us=self.now_us,
                capability=agent_pb2.Capability(),
            )
            try:
                stream = Stream(gateway, self.site.controller, self.site.ledger.ledger_id, session)
            except EpochTooLowError as error:
                above = error.highest
                continue
            except EpochTooHighError as error:
                behind_ms = self.site.clock.wall_us // 1000 - error.floor
                self.site.ledger.go_on_from(error.floor)
                continue
            for report in self.site.controller.journal.reports():
                self.checker.hear(report)
                stream.up.append(report)
            return stream

    # What is said

    def _now(self) -> int:
        return self.now_us

    def _on_report(self, report: dispatch_pb2.DispatchReport) -> None:
        self.checker.hear(report)
        if self.stream is not None:
            self.stream.up.append(report)

    def _on_status(self, dispatch: Any, status: Any) -> None:
        self.checker.read_status(dispatch, status)

    # The end

    async def heal(self) -> None:
        """Mend everything, then let all windows and deadlines pass."""
        if self.site.clock.wall_us != self.now_us:
            self.site.seen_us["clock"] = self.now_us
        self.cluster.change_asset(operatingState="InService")
        self.site.fuse.left = None
        self.site.fill_disk(False)
        self.site.break_device("none")
        self.site.clock.wall_us = self.now_us
        self.site.clock.ntp = True
        await self.start_what_is_down()
        assert self.operator is not None
        self.operator.fuse.left = None
        self.mend_links()
        self._cut_controls()
        for stream in self.forgotten:
            stream.close()
        self.forgotten = []
        self.cut_stream()
        await self.advance(1)
        last_us = max((self._deadline_us(d) for d in self.cluster.dispatches.values()), default=0)
        give_up_us = max(last_us, self.now_us) + _SLACK_SECONDS * SECOND_US
        while self.now_us < give_up_us and not self.at_rest():
            await self.advance(5)

    def _deadline_us(self, dispatch: Any) -> int:
        return int(dispatch.latest_end_us + dispatch.report_deadline_seconds * SECOND_US)

    def at_rest(self) -> bool:
        """Tell whether nothing is left to do for anybody."""
        controller = self.site.controller
        return (
            controller is not None
            and all(each.stage is Stage.DONE for each in controller.journal.values())
            and all(has_ended(each) for each in self.cluster.dispatches.values())
            and not any(each.meta.finalizers for each in self.cluster.dispatches.values())
            and len(controller.journal) == 0
            and self.site.at_fallback
        )


def _may_be_disturbed(message: Any) -> bool:
    """Tell whether the order of the stream is no promise for this one."""
    if isinstance(message, control_pb2.ReplicaMessage):
        return bool(message.WhichOneof("kind") == "report")
    return not isinstance(message, Snapshot)
