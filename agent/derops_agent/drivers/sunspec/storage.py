"""Active power by the charge and discharge rates of model 124, for batteries without model 704.

The two rates are the ends of a window for the battery's power: at most ``OutWRte`` out and at most
``InWRte`` in. A negative rate in one direction is a least power in the other, so a window without
width is a setpoint. Both refer to ``WChaMax``; the model has no other reference.
"""

from dataclasses import dataclass

from derops.modes import Mode
from derops_agent.drivers.rounding import refuse_lost_value
from derops_agent.drivers.sunspec.models import Block, Blocks, FunctionReversion, Write
from derops_agent.ports import Resolution, whole_watts

_OFF = 0
_BOTH = 3  # bit 0: InWRte counts, bit 1: OutWRte counts
_NARROW = 1e-6  # percent: widths below come from the scale factor


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRates:
    """The window of model 124; used as a ``Function`` is."""

    mode: str = Mode.ACTIVE_POWER
    model_id: int = 124
    value: str = "OutWRte and InWRte"
    timer: str = "InOutWRte_RvrtTms"

    @property
    def points(self) -> tuple[str, ...]:
        """The points that say whether and how the window holds something."""
        return ("StorCtl_Mod", "OutWRte", "InWRte", "WChaMax", self.timer)

    def is_in(self, blocks: Blocks) -> bool:
        """Tell whether a device implements it."""
        block = blocks.get(self.model_id)
        return (
            block is not None
            and all(block.raw(name) is not None for name in ("StorCtl_Mod", "OutWRte", "InWRte"))
            and bool(block.value("WChaMax"))
        )

    def has_timer(self, block: Block) -> bool:
        """Tell whether it can fall back by itself."""
        return block.raw(self.timer) is not None

    def resolution(self, block: Block, most_watts: float) -> Resolution:
        """Return which values a device can hold, by what it says now."""
        unit_watts = (block.value("WChaMax") or most_watts) / 100
        least, most = block.limits("OutWRte")
        return Resolution(
            step_watts=block.step("OutWRte") * unit_watts,
            least_watts=least * unit_watts,
            most_watts=most * unit_watts,
        )

    def held_watts(self, block: Block, most_watts: float) -> int | None:
        """Return what the device says that it holds; None = off, or limits and no setpoint."""
        outwards, inwards = block.value("OutWRte"), block.value("InWRte")
        reference_watts = block.value("WChaMax")
        if block.raw("StorCtl_Mod") != _BOTH or reference_watts is None:
            return None
        if outwards is None or inwards is None or abs(outwards + inwards) > _NARROW:
            return None
        return whole_watts(outwards * reference_watts / 100)

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
        """Return what to write, in order, and after how many seconds it falls back to off.

        A release leaves limits of somebody else alone, where only one rate counts.

        Raises:
            DeviceRefusedError: A register cannot hold a value, or makes another one of it.
        """
        counts = block.raw("StorCtl_Mod") == _BOTH
        if watts is None:
            return ([block.encode("StorCtl_Mod", _OFF)] if counts else []), None
        writes: list[Write] = []
        armed_seconds = None
        if self.has_timer(block):
            if fallback is not None:
                armed_seconds = min(fallback.after_seconds, block.most(self.timer))
            writes.append(block.encode(self.timer, armed_seconds or 0))
        if toggle and counts:
            writes.append(block.encode("StorCtl_Mod", _OFF))
        reference_watts = block.value("WChaMax") or most_watts
        percent = resolution.rounded(watts) * 100 / reference_watts
        register, outwards = block.encode("OutWRte", percent)
        encoded_watts = block.decode("OutWRte", outwards) * reference_watts / 100
        refuse_lost_value("OutWRte of model 124", watts, encoded_watts, resolution)
        _, inwards = block.encode("InWRte", -percent)
        # They are neighbours, and one request: else the window is upside down for a moment.
        writes += [(register, outwards + inwards), block.encode("StorCtl_Mod", _BOTH)]
        return writes, armed_seconds
