"""Whether what a status claims is what the device's own account proves. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from derops.schedules import SECOND_US

TOLERANCE_SECONDS = 1.5
"""Of ``activeSeconds``: it has whole seconds, and a read-back lies behind each write."""

_COLUMNS = {
    "ActivePower": "active_power_watts",
    "GenerationLimit": "max_generation_watts",
    "LoadLimit": "max_load_watts",
}
DEFAULT = {
    "active_power_watts": 0,
    "max_generation_watts": None,
    "max_load_watts": None,
    "energized": True,
}
"""What the device holds when nobody owns it: the fallback of the assets in these rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A promise that was broken; ``kind`` is a word for counting."""

    kind: str
    dispatch: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A stretch in which the device held a value."""

    from_us: int
    until_us: int


def stays(account: Sequence[Mapping[str, Any]], mode: str, watts: int) -> list[Stay]:
    """Return when the device held ``watts`` in ``mode``; one that it still holds has no end."""
    found: list[Stay] = []
    since_us = None
    for entry in account:
        holds = entry[_COLUMNS[mode]] == watts
        if holds and since_us is None:
            since_us = entry["at_us"]
        elif not holds and since_us is not None:
            found.append(Stay(from_us=since_us, until_us=entry["at_us"]))
            since_us = None
    if since_us is not None:
        found.append(Stay(from_us=since_us, until_us=2**62))
    return found


def watts_of(setpoint: Mapping[str, Any]) -> int:
    """Return the one value of a setpoint."""
    (watts,) = (value for name, value in setpoint.items() if name != "mode")
    return int(watts)


def judge(dispatch: Mapping[str, Any], account: Sequence[Mapping[str, Any]]) -> Iterator[Violation]:
    """Compare the status of a Dispatch that ended with its device's account.

    Its value must be its own: no other dispatch of the asset may have it.
    """
    name, spec, status = dispatch["metadata"]["name"], dispatch["spec"], dispatch["status"]
    held = stays(account, spec["setpoint"]["mode"], watts_of(spec["setpoint"]))
    told = {each["type"]: each["status"] for each in status["conditions"]}
    ending = f"{status['phase']} ({status['reason']})"

    def broken(kind: str, words: str) -> Violation:
        return Violation(kind=kind, dispatch=name, words=f"{ending}: {words}; device: {held}")

    if status["reason"] == "OutcomeUnknown":
        yield broken("unknown", "every part came back, so the outcome can be known")
        return
    if any(stay.until_us == 2**62 for stay in held):
        yield broken("without owner", "it ended and its value is still on the device")
        return
    if told["Applied"] != ("True" if held else "False"):
        yield broken("untrue", f"Applied is {told['Applied']}")
    if status["phase"] == "Complete" and not held:
        yield broken("untrue", "it was never on the device")
    execution = status.get("execution", {})
    if len(held) > 1 + execution.get("interruptions", 0):
        yield broken("applied twice", f"{len(held)} times on the device")
    seconds = sum(stay.until_us - stay.from_us for stay in held) / SECOND_US
    claimed = execution.get("activeSeconds", 0)
    if abs(claimed - seconds) > TOLERANCE_SECONDS:
        yield broken("untrue", f"activeSeconds is {claimed}, the device says {seconds:.1f}")
    ends = [line for line in status["history"] if line["phase"] == status["phase"]]
    starts = [line for line in status["history"] if line["phase"] == "Active"]
    if len(ends) != 1 or len(starts) > 1:
        yield broken("history", f"{len(starts)} starts and {len(ends)} ends in its history")
