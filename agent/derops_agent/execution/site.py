"""What an order is judged against: the asset's configuration, the device, the site's own limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from derops.checks import Refusal, check_energy
from derops.lifecycle import Reason
from derops.modes import Mode
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2
from derops_agent.execution.health import Badness, Health
from derops_agent.execution.needs import NEEDS, PointNeed, Use
from derops_agent.execution.resolution import ANY, sent, sent_watts
from derops_agent.execution.state import Execution
from derops_agent.execution.verification import Rule
from derops_agent.ports import VALUES, Capability, Reading, Setpoints

STALE_AFTER_US = 60 * SECOND_US
"""A device not measured for longer than this, and than three intervals, takes no setpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetSpec:
    """The parts of a DERAsset that an agent acts on."""

    uid: str
    generation: int
    type: str
    max_injection_watts: int
    max_absorption_watts: int
    max_dispatch_duration_seconds: int
    fallback: Setpoints
    revert_on_comms_loss: bool
    failsafe_after_seconds: int
    revert_on_restart: bool
    telemetry_interval_seconds: int
    operating_state: str
    clamp: bool
    energy_capacity_watt_hours: int = 0
    """0 = no storage."""

    max_ramp_watts_per_second: int | None = None
    min_reserve_percent: int | None = None
    min_seconds_between_writes: int = 0
    tolerance_watts: int | None = None
    tolerance_percent: int | None = None
    settle_seconds: int | None = None
    samples: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLimits:
    """Hard limits from the agent's own file; None = none."""

    max_injection_watts: int | None = None
    max_absorption_watts: int | None = None

    def bound(self, watts: int) -> int:
        """Return the active power nearest to ``watts`` that is allowed."""
        if self.max_injection_watts is not None:
            watts = min(watts, self.max_injection_watts)
        if self.max_absorption_watts is not None:
            watts = max(watts, -self.max_absorption_watts)
        return watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Everything that an order is judged against, at one moment."""

    capability: Capability
    asset: AssetSpec | None = None
    local: LocalLimits = field(default_factory=LocalLimits)
    clock_offset_milliseconds: int | None = None
    max_clock_offset_milliseconds: int = 5000
    settle_us: int = 5_000_000
    """The agent's own, for an asset that says nothing."""

    reading: Reading | None = None
    """The last sample."""

    health: Health = field(default_factory=Health)
    """What is known of the device, and which of its points are bad."""

    monotonic_us: int = 0
    """Now, by the monotonic clock."""

    silent_us: int = 0
    """For how long the device was not measured."""

    next_write_us: int = 0
    """Wall time before which the device is not to be given a new setpoint."""

    @property
    def rule(self) -> Rule:
        """How effects are judged here."""
        asset = self.asset
        rule = Rule(
            settle_us=self.settle_us,
            measures=self.capability.can_measure,
            resolutions=self.capability.resolutions,
        )
        if asset is None:
            return rule
        if asset.tolerance_watts is not None or asset.tolerance_percent is not None:
            rule = replace(
                rule,
                tolerance_watts=asset.tolerance_watts or 0,
                tolerance_percent=asset.tolerance_percent or 0,
                standby_watts=self._percent_watts if asset.tolerance_watts is None else 0,
            )
        if asset.settle_seconds is not None:
            rule = replace(rule, settle_us=asset.settle_seconds * SECOND_US)
        return rule if asset.samples is None else replace(rule, samples=asset.samples)

    @property
    def fallback(self) -> Setpoints:
        """What the device holds while no dispatch runs, as near to the asset's as it comes."""
        return self.sent(bounded(self.asset.fallback, self.local)) if self.asset else Setpoints()

    @property
    def fallback_watts(self) -> dict[str, int | None]:
        """The asset's fallback within the local limits, by mode; None = released."""
        fallback = bounded(self.asset.fallback, self.local) if self.asset else Setpoints()
        return {mode: fallback.of(mode) for mode in VALUES}

    @property
    def state_of_charge_percent(self) -> float | None:
        """The battery's charge as last measured; None = it is not known now."""
        quantity = agent_pb2.Quantity.STATE_OF_CHARGE_PERCENT
        need = next(each for each in NEEDS if each.quantity == quantity)
        if self.is_silent or self.is_absent(need):
            return None
        return self.health.values.get(quantity)

    @property
    def is_silent(self) -> bool:
        """Whether the last sample is too old to act on."""
        return self.silent_us > self._stale_after_us

    @property
    def _percent_watts(self) -> float:
        """Return 1 % of the device's larger rating."""
        capability = self.capability
        return max(capability.max_injection_watts, capability.max_absorption_watts) / 100

    @property
    def _stale_after_us(self) -> int:
        interval_us = (self.asset.telemetry_interval_seconds if self.asset else 1) * SECOND_US
        return max(STALE_AFTER_US, 3 * interval_us)

    def is_absent(self, need: PointNeed) -> bool:
        """Tell whether a point is bad, and its last good value too old to act on."""
        badness = self.health.badness_of(need)
        if badness is None:
            return False
        since_us = badness.last_good_us
        return since_us is None or self.monotonic_us - since_us > self._stale_after_us

    def explain_absence(self, use: Use, *, running: bool = False) -> str:
        """Return which point that an order needs is absent, in words; empty = none is.

        Args:
            use: What the order is to do.
            running: It is on the device: only what it cannot go on without counts.
        """
        for need in NEEDS:
            badness = self.health.badness_of(need)
            if badness is None or not need.applies(use) or (running and not need.ends):
                continue
            if self.is_absent(need):
                return self._explain(need, badness)
        return ""

    def explain_no_power(self) -> str:
        """Return why the device does not measure its power, by which effects are verified."""
        words = "the device does not measure its power"
        need = next(
            each for each in NEEDS if each.quantity == agent_pb2.Quantity.ACTIVE_POWER_WATTS
        )
        badness = self.health.badness_of(need)
        return words if badness is None else f"{words}: {_name(badness)}"

    def _explain(self, need: PointNeed, badness: Badness) -> str:
        good_us = badness.last_good_us
        since = "since the agent started"
        if good_us is not None:
            seconds = (self.monotonic_us - good_us) / SECOND_US
            since = f"for {seconds:.0f} s, {self._stale_after_us // SECOND_US} s are allowed"
        return f"{need.name} has not been known {since} ({_name(badness)})"

    def use_of(self, mode: str, watts: int, *, verify_required: bool) -> Use:
        """Return what an order is to do with the device."""
        reserve = self.asset.min_reserve_percent if self.asset is not None else None
        return Use(
            mode=mode,
            watts=watts,
            verify_required=verify_required,
            keeps_reserve=bool(reserve),
        )

    def refuse_start(
        self, mode: str, watts: int, seconds: float, *, verify_required: bool = False
    ) -> Refusal | None:
        """Return why a value may not be put on the device now, or None.

        Args:
            mode: Of the setpoint.
            watts: As it would be written.
            seconds: For how long it would hold.
            verify_required: Whether the order says ``verify: Required``.
        """
        if self.reading is not None and self.reading.local_control and not self.is_silent:
            return Refusal(
                reason=Reason.LOCAL_CONTROL_ACTIVE,
                message="the device is switched to local control; switch it to remote on site",
            )
        absence = self.explain_absence(self.use_of(mode, watts, verify_required=verify_required))
        if absence:
            return Refusal(reason=Reason.STALE_TELEMETRY, message=absence)
        if mode != Mode.ACTIVE_POWER:
            return None
        if self.capability.can_measure and self.is_silent:
            return Refusal(
                reason=Reason.STALE_TELEMETRY,
                message=(
                    f"the device was not measured for {self.silent_us / SECOND_US:.0f} s, "
                    f"{self._stale_after_us // SECOND_US} s are allowed; no active power is set "
                    f"without a measurement"
                ),
            )
        return self.refuse_energy(watts, seconds, self.state_of_charge_percent)

    def explain_hold_off(self, now_us: int) -> str:
        """Return why the device takes no new setpoint yet; empty = it does."""
        wait_us = self.next_write_us - now_us
        if self.asset is None or wait_us <= 0:
            return ""
        return (
            f"the device could not be written for another {wait_us / SECOND_US:.1f} s "
            f"(minSecondsBetweenWrites {self.asset.min_seconds_between_writes} s)"
        )

    def refuse_energy(
        self, watts: int, seconds: float, state_of_charge_percent: float | None
    ) -> Refusal | None:
        """Return why a battery cannot deliver or take this, or None; see ``check_energy``."""
        asset = self.asset
        if asset is None:
            return None
        return check_energy(
            watts=watts,
            duration_seconds=seconds,
            capacity_watt_hours=asset.energy_capacity_watt_hours,
            reserve_percent=asset.min_reserve_percent or 0,
            state_of_charge_percent=state_of_charge_percent,
        )

    def sent(self, wanted: Setpoints) -> Setpoints:
        """Return what the device can hold of ``wanted``, by which it is judged."""
        return sent(wanted, self.capability.resolutions)

    def mismatches(self, wanted: Setpoints, held: Setpoints) -> frozenset[str]:
        """Return the modes of which a device says that it holds something else than was sent.

        A device may round a value by up to 1 % of its rating, but no limit up by a step. What is
        at least as near to the fallback as to the value is the fallback. A released mode is not
        compared: its value is the device's own.

        Args:
            wanted: As it is asked for; what was sent of it is compared.
            held: What the device says that it holds.
        """
        wanted, rest = self.sent(wanted), self.fallback
        wrong = {
            mode
            for mode in VALUES
            if not self._is_as_sent(mode, wanted.of(mode), held.of(mode), rest.of(mode))
        }
        if wanted.energized != held.energized:
            wrong.add(Mode.CEASE_TO_ENERGIZE)
        return frozenset(wrong)

    def _is_as_sent(
        self, mode: str, sent_: int | None, held: int | None, fallback: int | None
    ) -> bool:
        if sent_ is None:
            return True
        if held is None:
            return False
        if sent_ and held * sent_ <= 0:
            return False
        step_watts = self.capability.resolutions.get(mode, ANY).step_watts
        over_watts = 0 if mode == Mode.ACTIVE_POWER else held - sent_
        if over_watts > max(1.0, step_watts / 2):
            return False
        if abs(sent_ - held) > max(1.0, self._percent_watts):
            return False
        return not _is_nearer_fallback(fallback, held, sent_)

    def off_watts(self, held: Setpoints, execution: Execution) -> int:
        """Return how far what a device holds is from what it was sent; 0 = it has no value."""
        mode, resolutions = execution.order.mode, self.capability.resolutions
        watts = held.of(mode)
        if watts is None:
            return 0
        off: int = abs(watts - sent_watts(execution.target_watts, resolutions.get(mode, ANY)))
        return off

    def holds(self, held: Setpoints, execution: Execution) -> bool:
        """Tell whether what a device says that it holds contains the execution's value."""
        mode = execution.order.mode
        alone = wanted_setpoints({mode: execution}, Setpoints(), LocalLimits())
        return mode not in self.mismatches(alone, held)


def whose_values(
    executions: Mapping[str, Execution], held: Setpoints, site: Site
) -> dict[str, frozenset[str]]:
    """Return the uids of those whose values a device says that it holds, by mode.

    Of values closer together than a device may round, the nearest counts.

    Args:
        executions: All; those that cannot be on the device are left out.
        held: What the device says that it holds.
        site: For what the device can hold, and how much it may round.
    """
    off_watts: dict[str, dict[str, int]] = {}
    for uid, execution in executions.items():
        if execution.may_be_on_device and site.holds(held, execution):
            mode = execution.order.mode
            off_watts.setdefault(mode, {})[uid] = site.off_watts(held, execution)
    return {
        mode: frozenset(uid for uid, off in found.items() if off == min(found.values()))
        for mode, found in off_watts.items()
    }


def wanted_setpoints(
    owners: dict[str, Execution], fallback: Setpoints, local: LocalLimits
) -> Setpoints:
    """Return all that the device shall hold: of each mode its owner's value, else its fallback.

    The local limits bound every value. A released mode stays released: the agent does not limit
    the device's own control.
    """
    held = {mode: owner.target_watts for mode, owner in owners.items()}
    wanted = replace(
        fallback,
        active_power_watts=held.get(Mode.ACTIVE_POWER, fallback.active_power_watts),
        max_generation_watts=held.get(Mode.GENERATION_LIMIT, fallback.max_generation_watts),
        max_load_watts=held.get(Mode.LOAD_LIMIT, fallback.max_load_watts),
        energized=Mode.CEASE_TO_ENERGIZE not in held,
    )
    return bounded(wanted, local)


def bounded(setpoints: Setpoints, local: LocalLimits) -> Setpoints:
    """Return ``setpoints`` with every value within the local limits."""
    power = setpoints.active_power_watts
    return replace(
        setpoints,
        active_power_watts=None if power is None else local.bound(power),
        max_generation_watts=_least(setpoints.max_generation_watts, local.max_injection_watts),
        max_load_watts=_least(setpoints.max_load_watts, local.max_absorption_watts),
    )


def _is_nearer_fallback(fallback_watts: int | None, held_watts: int, told_watts: int) -> bool:
    """Tell whether what a device holds is at least as near to its fallback as to what was sent."""
    if fallback_watts is None or fallback_watts == told_watts:
        return False
    return abs(held_watts - fallback_watts) <= abs(held_watts - told_watts)


def _least(watts: int | None, limit: int | None) -> int | None:
    if watts is None or limit is None:
        return watts
    return min(watts, limit)


def _name(badness: Badness) -> str:
    """Return which point is bad, what the device sent and why that is no value, in words."""
    point = badness.point
    raw = f", raw value {point.raw}" if point.raw else ""
    return f"{point.name}{raw}: {point.problem}"
