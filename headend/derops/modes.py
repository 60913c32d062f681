"""Words that resources, wire, database and code share, and that decisions are made by."""

from enum import StrEnum


class Mode(StrEnum):
    """What a dispatch sets; at most one dispatch owns a mode of an asset at a time."""

    ACTIVE_POWER = "ActivePower"
    """Injects that power, or absorbs it where it is negative."""

    GENERATION_LIMIT = "GenerationLimit"
    """Injects no more."""

    LOAD_LIMIT = "LoadLimit"
    """Absorbs no more."""

    CEASE_TO_ENERGIZE = "CeaseToEnergize"
    """Exchanges no active power; IEEE 1547's cease to energize."""


class LatePolicy(StrEnum):
    """What gives way where a window begins late."""

    KEEP_END = "KeepEnd"
    """The window gets shorter."""

    KEEP_DURATION = "KeepDuration"
    """The window ends later."""


class Evidence(StrEnum):
    """How well it is known that a setpoint was applied, from the weakest."""

    UNANSWERED = "Unanswered"
    """The device was sent it and never confirmed it; it may have held it."""

    WRITTEN = "Written"
    """The device took the write."""

    READ_BACK = "ReadBack"
    """The device said that it holds it."""

    EFFECT = "Effect"
    """Its measured power shows it."""


class Guard(StrEnum):
    """What ends a setpoint if nobody else does."""

    AGENT_TIMER = "AgentTimer"
    DEVICE_TIMER = "DeviceTimer"


class OperatingState(StrEnum):
    """Whether an asset may be dispatched: only in the first state."""

    IN_SERVICE = "InService"
    OUT_OF_SERVICE = "OutOfService"
    QUARANTINED = "Quarantined"
