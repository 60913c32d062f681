"""What may befall the headend, as data: a seed gives the same plan again."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto


class Setting(StrEnum):
    """What a fault needs around it."""

    ANY = auto()
    NATS = auto()
    SMALL_LOG = auto()
    """A log with a small bound."""
    SMALL_DISK = auto()
    """A small disk under the gateway's data."""
    STRACE = auto()
    """A log of the gateway's own, and strace to make its system calls fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A fault, and for how long it may last."""

    name: str
    setting: Setting = Setting.ANY
    shortest_seconds: float = 0.0
    longest_seconds: float = 0.0


KINDS = (
    Kind(name="gateway killed"),
    Kind(name="gateway stopped and continued", shortest_seconds=0.2, longest_seconds=5),
    Kind(name="gateway ended"),
    Kind(name="writer killed"),
    Kind(name="writer ended"),
    Kind(name="writer killed in a transaction"),
    Kind(name="writer killed, its session in the database stopped", longest_seconds=1),
    Kind(name="writer stopped and continued", shortest_seconds=0.2, longest_seconds=3),
    Kind(name="agent killed", longest_seconds=1),
    Kind(name="agent ended", longest_seconds=1),
    Kind(name="agent stopped and continued", shortest_seconds=0.2, longest_seconds=6),
    Kind(name="database killed"),
    Kind(name="database away", shortest_seconds=0.5, longest_seconds=3),
    Kind(name="database stopped and continued", shortest_seconds=0.2, longest_seconds=3),
    Kind(name="database connections cut"),
    Kind(name="everything killed at once"),
    Kind(name="all links cut at once"),
    Kind(name="links silent", shortest_seconds=0.5, longest_seconds=6),
    Kind(name="outboxes overflow", shortest_seconds=0.3, longest_seconds=1),
    Kind(name="hostile peer"),
    Kind(name="nats-server killed", setting=Setting.NATS),
    Kind(
        name="nats-server stopped and continued",
        setting=Setting.NATS,
        shortest_seconds=0.2,
        longest_seconds=5,
    ),
    Kind(name="log full", setting=Setting.SMALL_LOG),
    Kind(name="log full, gateway killed", setting=Setting.SMALL_LOG),
    Kind(name="disk full", setting=Setting.SMALL_DISK, shortest_seconds=0.2, longest_seconds=2),
    Kind(name="disk full, gateway killed", setting=Setting.SMALL_DISK, longest_seconds=2),
    Kind(name="disk error", setting=Setting.STRACE, longest_seconds=2),
    Kind(name="disk error, gateway killed", setting=Setting.STRACE, longest_seconds=2),
)
NOTHING = "nothing"
"""The first round, in which all must go well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One round: what happens, when, and for how long."""

    name: str
    after_seconds: float
    lasts_seconds: float
    choice: int
    """Which of several, where there are; what is random within the fault comes from it too."""


def plan(
    kinds: Sequence[Kind], rounds: int, seed: int, *, longest_seconds: float = math.inf
) -> list[Fault]:
    """Return every fault ``rounds`` times, in random order, at random moments.

    None lasts longer than ``longest_seconds``.
    """
    chance = random.Random(seed)
    faults = [
        Fault(
            name=kind.name,
            after_seconds=chance.uniform(0, 0.3),
            lasts_seconds=min(
                longest_seconds, chance.uniform(kind.shortest_seconds, kind.longest_seconds)
            ),
            choice=chance.randrange(2**32),
        )
        for kind in sorted(kinds, key=lambda kind: kind.name)
        for _ in range(rounds)
    ]
    chance.shuffle(faults)
    return faults
