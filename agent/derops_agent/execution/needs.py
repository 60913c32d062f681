"""Which points of a device an order needs. Pure; the page on safety shows the same table."""

from collections.abc import Callable
from dataclasses import dataclass

from derops.modes import Mode
from derops.wire.v1 import agent_pb2

LOCAL_CONTROL_POINT = "localControl"
"""Name of the bad point of a device that does not tell whether it is in local control."""

Applies = Callable[["Use"], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What an order is to do with a device, as far as that decides which points it needs."""

    mode: str
    watts: int
    """As it would be written."""

    verify_required: bool
    keeps_reserve: bool
    """The asset has a ``minReservePercent`` above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointNeed:
    """A point, and the orders that wait for it."""

    orders: str
    """Which, in the words of the documentation."""

    point: str
    """As the documentation calls it."""

    quantity: int
    """Number of ``agent_pb2.Quantity``; 0 = it is no quantity, and found by its name."""

    name: str
    """In words."""

    ends: bool
    """Whether an order that runs ends once the point was absent for too long."""

    applies: Applies


NEEDS = (
    PointNeed(
        orders="every order",
        point=LOCAL_CONTROL_POINT,
        quantity=0,
        name="the switch between local and remote control",
        ends=False,
        applies=lambda _: True,
    ),
    PointNeed(
        orders="`ActivePower`",
        point="activePowerWatts",
        quantity=agent_pb2.ACTIVE_POWER_WATTS,
        name="the active power",
        ends=False,
        applies=lambda use: use.mode == Mode.ACTIVE_POWER,
    ),
    PointNeed(
        orders="any mode with `verify: Required`",
        point="activePowerWatts",
        quantity=agent_pb2.ACTIVE_POWER_WATTS,
        name="the active power",
        ends=False,
        applies=lambda use: use.verify_required,
    ),
    PointNeed(
        orders="`ActivePower` above 0 W on an asset with `limits.minReservePercent` above 0",
        point="stateOfChargePercent",
        quantity=agent_pb2.STATE_OF_CHARGE_PERCENT,
        name="the state of charge",
        ends=True,
        applies=lambda use: use.mode == Mode.ACTIVE_POWER and use.watts > 0 and use.keeps_reserve,
    ),
)
"""An order is held up by points that are bad, not by those that a device does not have."""
