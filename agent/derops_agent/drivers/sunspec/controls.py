"""How setpoints stand in SunSpec registers. Pure: blocks as they were read in, writes out.

Functions of model 704 have a reversion value of their own, those of models 123 and 124 fall back to
off, and 703 has no timer. The order of writes is the device's safety: what it shall fall back to
and when, then the value, then the enable.
"""

from dataclasses import dataclass

from derops.errors import DeviceRefusedError
from derops.modes import Mode
from derops_agent.drivers.rounding import refuse_lost_value
from derops_agent.drivers.sunspec.models import Block, Blocks, FunctionReversion, Write
from derops_agent.drivers.sunspec.storage import StorageRates
from derops_agent.ports import Resolution, Setpoints, whole_watts

_OFF, _ON = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One way to hold a power or a limit: a value that counts while it is enabled."""

    mode: str
    model_id: int
    value: str
    enable: str
    timer: str
    percent: bool = False
    """Whether the value is a share of the most power (WMax)."""

    selector: tuple[str, int] | None = None
    """Point that says which of several values counts, and what it has to say."""

    fallback_value: str | None = None
    fallback_enable: str | None = None

    def is_in(self, blocks: Blocks) -> bool:
        """Tell whether a device implements it."""
        block = blocks.get(self.model_id)
        return (
            block is not None
            and block.raw(self.enable) is not None
            and block.raw(self.value) is not None
        )

    @property
    def points(self) -> tuple[str, ...]:
        """The points that say whether and how the function holds something."""
        selector = () if self.selector is None else (self.selector[0],)
        return (self.enable, self.value, self.timer, *selector)

    def has_timer(self, block: Block) -> bool:
        """Tell whether it can fall back by itself."""
        return block.raw(self.timer) is not None

    def resolution(self, block: Block, most_watts: float) -> Resolution:
        """Return which values a device can hold, by the scale factor that it says now."""
        unit_watts = most_watts / 100 if self.percent else 1.0
        least, most = block.limits(self.value)
        if self.percent and self.mode != Mode.ACTIVE_POWER:
            most = min(most, 100.0)  # of the most power; some devices refuse more
        return Resolution(
            step_watts=block.step(self.value) * unit_watts,
            least_watts=least * unit_watts,
            most_watts=most * unit_watts,
        )

    def held_watts(self, block: Block, most_watts: float) -> int | None:
        """Return what the device says that it holds; None = the function is off."""
        if block.raw(self.enable) != _ON:
            return None
        if self.selector is not None and block.raw(self.selector[0]) != self.selector[1]:
            return None
        value = block.value(self.value)
        if value is None:
            return None
        return whole_watts(self._watts(value, most_watts))

    def writes(
        self,
        block: Block,
        watts: int | None,
        fallback: FunctionReversion | None,
        *,
        most_watts: float,
        resolution: Resolution,
        toggle: bool,
    ) -> tuple[list[Write], int | None]:
        """Return what to write, in order, and after how many seconds it falls back by itself.

        Args:
            block: Its model as it was just read.
            watts: What it shall hold; None = off. One that is off is not touched.
            fallback: What to arm, if it has a timer.
            most_watts: What a percentage refers to.
            resolution: That the device was opened with.
            toggle: Switch it off before the value changes: some devices keep the old one else.

        Raises:
            DeviceRefusedError: A register cannot hold a value, or makes another one of it.
        """
        enabled = block.raw(self.enable) == _ON
        if watts is None:
            return ([block.encode(self.enable, _OFF)] if enabled else []), None
        writes, armed_seconds = self._arm(block, fallback, most_watts, resolution)
        if self.selector is not None and block.raw(self.selector[0]) not in (
            None,
            self.selector[1],
        ):
            writes.append(block.encode(*self.selector))
        if toggle and enabled:
            writes.append(block.encode(self.enable, _OFF))
        writes.append(self._encode(block, self.value, watts, most_watts, resolution))
        writes.append(block.encode(self.enable, _ON))
        return writes, armed_seconds

    def _arm(
        self,
        block: Block,
        fallback: FunctionReversion | None,
        most_watts: float,
        resolution: Resolution,
    ) -> tuple[list[Write], int | None]:
        if not self.has_timer(block):
            return [], None
        if fallback is None:
            return [block.encode(self.timer, 0)], None
        writes = []
        on = fallback.watts is not None and self._can_fall_back_to_a_value(block)
        if on and self.fallback_value is not None and fallback.watts is not None:
            writes.append(
                self._encode(block, self.fallback_value, fallback.watts, most_watts, resolution)
            )
        if self.fallback_enable is not None and block.raw(self.fallback_enable) is not None:
            writes.append(block.encode(self.fallback_enable, _ON if on else _OFF))
        armed_seconds = min(fallback.after_seconds, block.most(self.timer))
        writes.append(block.encode(self.timer, armed_seconds))
        return writes, armed_seconds

    def _can_fall_back_to_a_value(self, block: Block) -> bool:
        return (
            self.fallback_value is not None
            and self.fallback_enable is not None
            and block.raw(self.fallback_value) is not None
            and block.raw(self.fallback_enable) is not None
        )

    def _encode(
        self, block: Block, name: str, watts: int, most_watts: float, resolution: Resolution
    ) -> Write:
        asked_watts = watts if self.mode == Mode.ACTIVE_POWER else resolution.bounded(watts)
        number = resolution.rounded(asked_watts)
        if self.percent:
            number = number * 100 / most_watts
        register, data = block.encode(name, number)
        encoded_watts = self._watts(block.decode(name, data), most_watts)
        refuse_lost_value(
            f"{name} of model {self.model_id}", asked_watts, encoded_watts, resolution
        )
        return register, data

    def _watts(self, value: float, most_watts: float) -> float:
        return value * most_watts / 100 if self.percent else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """The switch that permits a device to serve: 703 ES, or 123 Conn."""

    model_id: int
    point: str
    timer: str | None = None

    def is_in(self, blocks: Blocks) -> bool:
        """Tell whether a device implements it."""
        block = blocks.get(self.model_id)
        return block is not None and block.raw(self.point) is not None

    @property
    def points(self) -> tuple[str, ...]:
        """The points that say whether the device is permitted to serve."""
        return (self.point,) if self.timer is None else (self.point, self.timer)

    def has_timer(self, block: Block) -> bool:
        """Tell whether it permits service again by itself."""
        return self.timer is not None and block.raw(self.timer) is not None

    def energized(self, block: Block) -> bool:
        """Tell whether the device is permitted to serve."""
        return bool(block.raw(self.point) != _OFF)

    def writes(
        self, block: Block, *, energized: bool, after_seconds: int | None
    ) -> tuple[list[Write], int | None]:
        """Return what to write, and after how many seconds it falls back by itself."""
        if energized:
            return ([] if self.energized(block) else [block.encode(self.point, _ON)]), None
        writes, armed_seconds = [], None
        if self.timer is not None and self.has_timer(block):
            armed_seconds = after_seconds and min(after_seconds, block.most(self.timer))
            writes.append(block.encode(self.timer, armed_seconds or 0))
        return [*writes, block.encode(self.point, _OFF)], armed_seconds


POWER: tuple[Function | StorageRates, ...] = (
    Function(
        mode=Mode.ACTIVE_POWER,
        model_id=704,
        value="WSet",
        enable="WSetEna",
        timer="WSetRvrtTms",
        selector=("WSetMod", 1),  # WATTS
        fallback_value="WSetRvrt",
        fallback_enable="WSetEnaRvrt",
    ),
    Function(
        mode=Mode.ACTIVE_POWER,
        model_id=704,
        value="WSetPct",
        enable="WSetEna",
        timer="WSetRvrtTms",
        percent=True,
        selector=("WSetMod", 0),  # W_MAX_PCT
        fallback_value="WSetPctRvrt",
        fallback_enable="WSetEnaRvrt",
    ),
    StorageRates(),
)
GENERATION_LIMIT = (
    Function(
        mode=Mode.GENERATION_LIMIT,
        model_id=704,
        value="WMaxLimPct",
        enable="WMaxLimPctEna",
        timer="WMaxLimPctRvrtTms",
        percent=True,
        fallback_value="WMaxLimPctRvrt",
        fallback_enable="WMaxLimPctEnaRvrt",
    ),
    Function(
        mode=Mode.GENERATION_LIMIT,
        model_id=123,
        value="WMaxLimPct",
        enable="WMaxLim_Ena",
        timer="WMaxLimPct_RvrtTms",
        percent=True,
    ),
)
SWITCHES = (
    Switch(model_id=703, point="ES"),
    Switch(model_id=123, point="Conn", timer="Conn_RvrtTms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The functions by which one device is controlled; None = it does not have the mode."""

    power: Function | StorageRates | None
    limit: Function | None
    switch: Switch | None

    @property
    def modes(self) -> frozenset[str]:
        """Setpoint modes that the device offers."""
        offered = {
            Mode.ACTIVE_POWER: self.power,
            Mode.GENERATION_LIMIT: self.limit,
            Mode.CEASE_TO_ENERGIZE: self.switch,
        }
        return frozenset(mode for mode, how in offered.items() if how is not None)

    @property
    def model_ids(self) -> frozenset[int]:
        """Models that have these functions."""
        return frozenset(
            how.model_id for how in (self.power, self.limit, self.switch) if how is not None
        )

    def implemented(self, blocks: Blocks) -> frozenset[tuple[int, str]]:
        """Return the points, by model, that say what is held, with their scale factors."""
        found = set()
        for how in (self.power, self.limit, self.switch):
            if how is not None:
                block = blocks[how.model_id]
                names = {*how.points, *filter(None, map(block.scale_of, how.points))}
                found |= {(how.model_id, each) for each in names if block.raw(each) is not None}
        return frozenset(found)

    def resolutions(self, blocks: Blocks, most_watts: float) -> dict[str, Resolution]:
        """Return which values the device can hold, by mode."""
        return {
            each.mode: each.resolution(blocks[each.model_id], most_watts)
            for each in (self.power, self.limit)
            if each is not None
        }

    def held(self, blocks: Blocks, most_watts: float) -> Setpoints:
        """Return what the device says that it holds.

        A mode whose value is no number is one without a value.
        """

        def watts(function: Function | StorageRates | None) -> int | None:
            if function is None:
                return None
            try:
                return function.held_watts(blocks[function.model_id], most_watts)
            except DeviceRefusedError:
                return None

        power, limit = watts(self.power), watts(self.limit)
        switch = self.switch
        return Setpoints(
            active_power_watts=power,
            max_generation_watts=limit,
            energized=switch is None or switch.energized(blocks[switch.model_id]),
        )


def controls_of(blocks: Blocks) -> Controls:
    """Choose the functions of a device; where it has two models, the newer one."""
    return Controls(
        power=next((each for each in POWER if each.is_in(blocks)), None),
        limit=next((each for each in GENERATION_LIMIT if each.is_in(blocks)), None),
        switch=next((each for each in SWITCHES if each.is_in(blocks)), None),
    )
