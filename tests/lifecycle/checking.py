"""What must hold after every step, and what must hold once everything is mended.

The device's own account is the truth; it is kept by the true time, whatever the agent's clock says.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.lifecycle.site import BENIGN, FAULTS, SILENT, Entry, Site

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence
from derops.schedules import SECOND_US
from derops.transitions import TRANSITIONS, Actor, may_say
from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_agent.ports import Setpoints
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import parse_instant

SAVED_EVERY_SECONDS = 10.0
"""How old the agent's last word to its disk may be: what came after is not claimed."""

TOLERANCE_SECONDS = 1.0

LOOK_SECONDS = 6.0
"""For how long what a device takes late may go unseen."""


SUSPECT_SECONDS = 130

AWAKE_SECONDS = 1.0
"""For how long an agent runs, able to, before it has looked at each start that it was to make."""

HARD = frozenset(FAULTS) - BENIGN
_UNANSWERED = frozenset(SILENT) | {"acts late", "answers the next write not"}
_SHOWS_ANEW = "shows late each time anew"
_UNSEEN = frozenset({"shows late", _SHOWS_ANEW})

OF_ITS_OWN = {Reason.AGENT_RESTARTED, Reason.DEVICE_WRITE_FAILED, Reason.LOCAL_OVERRIDE}
"""What can only be of something that befell the dispatch itself."""

CAUSES: Mapping[Reason, frozenset[str]] = {
    Reason.AGENT_RESTARTED: frozenset({"start"}),
    Reason.DEVICE_WRITE_FAILED: frozenset({"refuses", "local control"}),
    Reason.DEVICE_OFFLINE: _UNANSWERED,
    Reason.READ_BACK_MISMATCH: frozenset({"ignores", "drop"}) | _UNANSWERED,
    Reason.SETPOINT_NOT_HELD: HARD | {"drop", "down", "disk full"},
    Reason.REVERT_FAILED: HARD,
    Reason.REVERTED_LATE: HARD | {"down", "disk full", "clock"},
    Reason.LOCAL_CONTROL_ACTIVE: frozenset({"local control"}),
    Reason.LOCAL_OVERRIDE: frozenset({"local control"}),
    Reason.STALE_TELEMETRY: frozenset(SILENT) | {"down"},
    Reason.START_DEADLINE_EXCEEDED: _UNSEEN
    | _UNANSWERED
    | {"disk full", "clock", "rival", "ignores", "drop"},
    Reason.RATE_LIMITED: frozenset({"policy"}),
    Reason.LIMIT_EXCEEDED: frozenset({"policy"}),
    Reason.COMMS_LOSS_FAILSAFE: frozenset({"policy"}),
    Reason.EFFECT_NOT_OBSERVED: frozenset({"verify"}),
    Reason.INSUFFICIENT_ENERGY: frozenset({"none"} | FAULTS.keys()),
    Reason.LEDGER_LOST: frozenset({"another ledger"}),
}
"""Of what each reason of a failure may come: one of these must have befallen the site."""


class Step(NamedTuple):
    """One transition that the headend tells of a dispatch."""

    phase: str
    reason: str
    message: str
    at_us: int


@dataclass(slots=True)
class Known:
    """One dispatch as everybody saw it."""

    dispatch: Dispatch
    expected_us: int
    expected_fog_us: int
    withdrawn: bool = False
    given_up: bool = False
    """Its status has an end: agents are told to forget it."""

    phase: Phase = Phase.SUBMITTED
    """As it was stored last."""

    reports: dict[str, dispatch_pb2.DispatchReport] = field(default_factory=dict)
    """The last of each ledger."""

    over_us: int = 0
    """When an agent first said that it had ended and is off the device, by the true time."""

    over_fog_us: int = 0
    held_us: int = 0
    """For how long its device held its value, by the device's account."""

    stays: int = 0
    """How often the value came onto the device."""

    since_us: int = 0
    """Since when the device holds it; 0 = it does not."""

    hidden_us: int = 0
    """When it was last written to a device that may not have shown it yet."""

    unsure_seconds: float = 0.0
    """By how much the agent may be wrong about that, for what befell device and clock."""

    unseen_us: int = 0
    """For how long it was on a device that shows each write late anew, and was written again before
    it could show anything."""

    landings: int = 0
    """How often a device did late what it was told: it may be over before the agent looks."""

    disk_lost: bool = False
    given_to: set[str] = field(default_factory=set)
    """The ledgers of the streams that a gateway believed in: it may have written it to them."""

    accepted_us: int = 0
    """When an agent first said that it has it, by the true time; 0 = not yet."""

    stored: set[Step] = field(default_factory=set)
    """The headend's transitions in its status."""

    told: set[Step] = field(default_factory=set)
    """Those that the history was told."""


class Checker:
    """Hears everything that is said, reads the device's account, and complains."""

    def __init__(self, site: Site, now_us: Callable[[], int]) -> None:
        self._site, self._now_us = site, now_us
        self.known: dict[str, Known] = {}
        self._memory_us = 0

    # What happens

    def expect(self, dispatch: Dispatch) -> None:
        """Note a new dispatch. No other has its value in its mode."""
        self.known[dispatch.meta.uid] = Known(
            dispatch=dispatch, expected_us=self._now_us(), expected_fog_us=self._site.fog_us
        )

    def withdraw(self, uid: str) -> None:
        """Note that somebody wants it gone."""
        self.known[uid].withdrawn = True

    def doubt(self, seconds: float) -> None:
        """Note something that leaves the agent unsure of what the device held, for so long."""
        for each in self.known.values():
            if not each.over_us:
                each.unsure_seconds += seconds

    def land_late(self) -> None:
        """Note that the device has done what it was told too long ago to be waited for."""
        self.doubt(LOOK_SECONDS)
        for each in self.known.values():
            each.landings += not each.over_us

    def doubt_clock(self, seconds: float) -> None:
        """Note that the wall clock was set: over a reboot nothing else counts."""
        self.doubt(seconds)

    def lose_disk(self) -> None:
        """Note that the agent knows nothing any more."""
        for each in self.known.values():
            each.disk_lost = True

    def forget_before(self, memory_us: int) -> None:
        """Note that a gateway remembers only from now on whom it gave what."""
        self._memory_us = max(self._memory_us, memory_us)

    def give(self, ledger_id: str) -> None:
        """Note that a gateway may write what there is to a stream of this ledger."""
        for each in self.known.values():
            each.given_to.add(ledger_id)

    # What is said

    def hear(self, report: dispatch_pb2.DispatchReport) -> None:
        """Check the agent's word against its earlier word and the table of transitions."""
        known = self.known[report.dispatch_uid]
        phases = [Phase(step.phase) for step in report.transitions]
        for before, step in zip([Phase.SENT, *phases], report.transitions, strict=False):
            assert _is_listed(before, Phase(step.phase), step.reason), f"no such step: {report}"
        assert sum(phase.terminal for phase in phases) <= 1, f"two ends: {report}"
        assert phases.count(Phase.ACTIVE) <= 1, f"ran twice: {report}"
        # That it had been applied may be found out when it is to be reverted.
        assert report.applied_us or Phase.ACTIVE not in phases, f"active, not applied: {report}"
        before_it = known.reports.get(report.ledger_id)
        if before_it is not None and Phase(before_it.phase).terminal:
            same = (before_it.phase, before_it.reason) == (report.phase, report.reason)
            assert same, f"an end changed: {before_it} became {report}"
        known.accepted_us = known.accepted_us or self._now_us()
        for step in report.transitions:
            if Phase(step.phase) is Phase.FAILED:
                self._check_reason(known, step.reason, report)
        known.reports[report.ledger_id] = report
        if Phase(report.phase).terminal and not _awaits_revert(report) and not known.over_us:
            known.over_us, known.over_fog_us = self._now_us(), self._site.fog_us
        self._check_end(known, report)

    def _check_reason(self, known: Known, reason: str, report: dispatch_pb2.DispatchReport) -> None:
        """Hold why something is said to have failed against what really befell it."""
        causes = CAUSES[Reason(reason)]
        # What a device was told before may land for two minutes.
        since_us = known.expected_us - SUSPECT_SECONDS * SECOND_US
        if Reason(reason) in OF_ITS_OWN:
            since_us = known.expected_us
        there = {cause for cause, at_us in self._site.seen_us.items() if at_us >= since_us}
        if any(self._rivals(known)):
            there.add("rival")
        if known.dispatch.verify == "Required":
            there.add("verify")
        if Reason(reason) is Reason.LEDGER_LOST and known.given_to - {report.ledger_id}:
            there.add("another ledger")
        assert causes & there, f"{reason}, and there was only {sorted(there)}: {report}"
        if Reason(reason) is Reason.AGENT_RESTARTED:
            self._check_restart(known, report)

    def _check_restart(self, known: Known, report: dispatch_pb2.DispatchReport) -> None:
        """Hold that the agent has restarted since it had it, and has not gone on before that."""
        before = known.reports.get(report.ledger_id)
        if before is None or Phase(before.phase).terminal:
            return  # as it said before, or at once
        started_us = self._site.seen_us["start"]
        assert started_us >= known.accepted_us, f"it has run ever since it had it: {report}"
        if report.applied_us or report.evidence == Evidence.UNANSWERED or report.pending_error:
            return  # what was begun then may have ended much later
        awake = self._site.awake_us / SECOND_US
        assert awake <= AWAKE_SECONDS, f"it had gone on for {awake} s since: {report}"

    def _rivals(self, known: Known) -> Iterator[Known]:
        """Yield those of the same mode that may go before it."""
        for each in self.known.values():
            same = each is not known and each.dispatch.mode == known.dispatch.mode
            if same and _strength(each.dispatch) > _strength(known.dispatch):
                yield each

    def _check_end(self, known: Known, report: dispatch_pb2.DispatchReport) -> None:
        if report.phase == Phase.CANCELLED:
            late = self._now_us() > known.dispatch.accept_by_us
            assert known.withdrawn or known.given_up or late, f"nobody withdrew it: {report}"
        if report.phase == Phase.SUPERSEDED:
            winner = self.known[report.superseded_by].dispatch
            assert winner.mode == known.dispatch.mode
            assert _strength(winner) > _strength(known.dispatch), f"the weaker won: {report}"

    def read_status(self, before: Dispatch, status: Mapping[str, Any]) -> None:
        """Check what the operator is about to store."""
        known = self.known[before.meta.uid]
        old, new = Phase(before.status.get("phase") or Phase.SUBMITTED), Phase(status["phase"])
        assert new.rank >= old.rank, f"{old} went back to {new}"
        known.given_up = known.given_up or new.terminal
        known.phase = new
        if old.terminal:
            assert before.status["history"] == status["history"], f"ended again: {status}"
            said = (old, before.status["reason"])
            assert said == (new, status["reason"]), f"the end {said} became {status}"
        lines = status["history"]
        assert sum(Phase(line["phase"]).terminal for line in lines) <= 1, f"two ends: {lines}"
        for line in lines:
            listed = may_say(Actor(line["actor"]), Phase(line["phase"]), line["reason"])
            assert listed, f"nobody may say that: {line}"
        known.stored |= {_step_of(line) for line in lines if line["actor"] != Actor.AGENT}
        told = {each["type"]: each["status"] for each in status["conditions"]}
        heard = any(report.applied_us for report in known.reports.values())
        assert told["Applied"] != "True" or heard, "applied, and the agent never said so"
        seen = known.stays or not _is_seen(known.dispatch)
        assert told["Applied"] != "True" or seen, "applied, and the device never had it"
        if new is Phase.CANCELLED and not old.terminal:
            assert known.withdrawn or self._now_us() > known.dispatch.accept_by_us

    def hear_history(self, told: control_pb2.HeadendTransition) -> None:
        """Hold what the history is told against what is stored, in the same words."""
        known, said = self.known[told.dispatch_uid], told.transition
        step = Step(said.phase, said.reason, said.message, said.at_us)
        assert step in known.stored, f"the history was told {step}, stored is {known.stored}"
        known.told.add(step)

    # What is on the device

    def look(self) -> None:
        """Check what the device did since the last look."""
        for entry in self._site.read_account():
            for each in self.known.values():
                self._follow(each, entry)
        held, device = self._site.held, self._site.device.capability
        most = device.read_back.most_writes
        # Writes that only set a device's own timer again are not counted.
        worn = self._site.wear.most_writes > most and not device.reversion
        assert not worn, f"one value was written more than {most} times for the same"
        for each in self.known.values():
            gone = each.over_us and not each.disk_lost
            assert not (gone and self._holds(held, each.dispatch)), (
                f"{each} ended and is still held"
            )

    def _holds(self, setpoints: Setpoints, dispatch: Dispatch) -> bool:
        return _holds(setpoints, dispatch, self._site.step_watts)

    def _follow(self, known: Known, entry: Entry) -> None:
        holds = self._holds(entry.setpoints, known.dispatch)
        if holds != bool(known.since_us):
            known.unsure_seconds += self._count_ignored_us(known, entry) / SECOND_US
        if holds and not known.since_us:
            again = known.over_us and entry.at_us > known.over_us
            assert not again or known.disk_lost, f"{known} was applied after its end"
            known.since_us = known.hidden_us = entry.at_us
            known.stays += 1
        elif holds and self._site.fault == _SHOWS_ANEW:
            if entry.at_us - known.hidden_us <= LOOK_SECONDS * SECOND_US:
                known.unseen_us += entry.at_us - known.hidden_us
                known.hidden_us = entry.at_us
        elif not holds and known.since_us:
            known.held_us += entry.at_us - known.since_us
            known.since_us = 0

    def _count_ignored_us(self, known: Known, entry: Entry) -> int:
        """Return for how long the device had ignored what one write brings or ends now.

        An agent that waits for a write takes it for one that is shown late, also where the next
        write follows. It cannot tell the two apart. What it writes again is another matter: by then
        it knows that the device did not take the first.
        """
        told, patience = self._site.told, self._site.device.capability.read_back.patience_seconds
        landed = [each for each in told if each.at_us == entry.at_us and not each.ignored]
        if not landed:
            return 0  # its own timer, or somebody at the device
        holds, first = self._holds(entry.setpoints, known.dispatch), landed[0]
        for each in reversed(told[: told.index(first)]):
            again = each.setpoints == first.setpoints
            late = first.at_us - each.at_us > patience * SECOND_US
            same = self._holds(each.setpoints, known.dispatch) == holds
            if again or late or not same or not each.ignored:
                break
            first = each
        return entry.at_us - first.at_us

    # At the end

    def conclude(self, dispatches: Mapping[str, Dispatch]) -> None:
        """Check what came of everything, with all mended and all time passed."""
        assert self._site.at_fallback, f"without owner: {self._site.held}"
        for each in self.known.values():
            self._compare(each)
        for dispatch in dispatches.values():
            assert dispatch.phase.terminal, f"never ended: {dispatch}"
            assert not dispatch.meta.finalizers, f"never let go: {dispatch}"
            self._compare_status(dispatch)

    def _compare(self, known: Known) -> None:
        """Hold the agent's last word against the device's account."""
        for report in known.reports.values():
            ended = Phase(report.phase).terminal and not _awaits_revert(report)
            assert ended or known.disk_lost, f"never ended: {report}"
        if known.disk_lost or not _is_seen(known.dispatch):
            return
        claimed = sum(each.active_milliseconds for each in known.reports.values()) / 1000
        seconds = known.held_us / SECOND_US
        fog = (known.over_fog_us or self._site.fog_us) - known.expected_fog_us
        allowed = TOLERANCE_SECONDS + known.unsure_seconds + fog / SECOND_US
        if any(_is_unproven(report) for report in known.reports.values()):
            # Written over before the device showed it.
            allowed += LOOK_SECONDS + known.unseen_us / SECOND_US
        assert abs(claimed - seconds) <= allowed, (
            f"claims {claimed} s, the device says {seconds} s, allowed are {allowed} s: {known}"
        )
        for report in known.reports.values():
            watts = known.dispatch.watts - known.dispatch.watts % self._site.step_watts
            told = report.HasField("applied_watts")
            assert not told or report.applied_watts == watts, f"it holds {watts} W: {report}"
        applied = any(report.applied_us for report in known.reports.values())
        assert not applied or known.stays, f"applied, and never on the device: {known}"

    def _compare_status(self, dispatch: Dispatch) -> None:
        known = self.known[dispatch.meta.uid]
        assert known.told == known.stored, f"the history was told only {known.told}: {dispatch}"
        status = dispatch.status
        told = {each["type"]: each["status"] for each in status["conditions"]}
        never = told["Applied"] == "False"
        unseen = known.stays <= known.landings and known.held_us <= LOOK_SECONDS * SECOND_US
        had = known.stays and not unseen
        assert not never or not had, f"not applied, and the device had it: {known}"
        ends = [each for each in known.reports.values() if Phase(each.phase).terminal]
        if status["reason"] == Reason.OUTCOME_UNKNOWN or not ends:
            return
        said = {(each.phase, each.reason) for each in ends}
        forgotten = self._memory_us > dispatch.meta.created_us
        if forgotten or any(known.given_to - {each.ledger_id} for each in ends):
            # The operator says it where another ledger tells another end, or may have had it.
            said.add((Phase.FAILED, Reason.LEDGER_LOST))
        assert (status["phase"], status["reason"]) in said, f"{status} is not what was said: {said}"


def _step_of(line: Mapping[str, Any]) -> Step:
    return Step(line["phase"], line["reason"], line["message"], parse_instant(line["at"]))


def _is_listed(before: Phase, after: Phase, reason: str) -> bool:
    return any(
        each.actor is Actor.AGENT
        and each.end is after
        and before in each.starts
        and reason in each.reasons
        for each in TRANSITIONS
    )


def _is_seen(dispatch: Dispatch) -> bool:
    """Tell whether the device's account shows whose wish it holds."""
    return dispatch.mode != "CeaseToEnergize"


def _holds(setpoints: Setpoints, dispatch: Dispatch, step_watts: int) -> bool:
    watts = dispatch.watts - dispatch.watts % step_watts  # none is negative here
    match dispatch.mode:
        case "ActivePower":
            return setpoints.active_power_watts == watts
        case "GenerationLimit":
            return setpoints.max_generation_watts == watts
        case "LoadLimit":
            return setpoints.max_load_watts == watts
    return False  # that it is not energized says nothing of whose wish it is


def _awaits_revert(report: dispatch_pb2.DispatchReport) -> bool:
    """Tell whether the agent says that it failed, and has yet to say that it is reverted."""
    early = report.applied_us or report.evidence == Evidence.UNANSWERED
    unreverted = bool(early and report.ended_us) and not report.reverted_us
    return unreverted or bool(report.pending_error)  # or its device may take it yet


def _is_unproven(report: dispatch_pb2.DispatchReport) -> bool:
    """Tell whether it says that nobody knows whether the device had it."""
    return not report.applied_us and report.evidence == Evidence.UNANSWERED


def _strength(dispatch: Dispatch) -> tuple[int, int, str]:
    return (-dispatch.primacy, dispatch.meta.created_us, dispatch.meta.uid)
