"""What happened to an asset, from all sources in one order. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from derops.resources.derassets import DERAsset
from derops.resources.dispatches import Dispatch
from derops_cli.evidence import EventSeen, Missing, Stored
from derops_cli.words import clean, instant

MOST_ENTRIES = 1000
"""The most entries of a timeline: the newest are kept."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """Something that happened."""

    at: datetime
    source: str
    """Dispatch, Condition, Event, Connection or Gap."""

    about: str
    what: str


def make_timeline(
    asset: DERAsset,
    dispatches: Iterable[Dispatch],
    events: tuple[EventSeen, ...] | Missing,
    stored: Stored | Missing | None,
    since: datetime,
) -> list[Entry]:
    """Return what happened since an instant, the oldest first."""
    found = [*_condition_entries(asset)]
    for dispatch in dispatches:
        found += _dispatch_entries(dispatch)
    if not isinstance(events, Missing):
        found += [
            Entry(each.at, "Event", each.name, clean(f"{each.reason}: {each.note}"))
            for each in events
        ]
    if isinstance(stored, Stored):
        found += _stored_entries(asset.metadata.name, stored)
    return sorted(each for each in found if each.at >= since)[-MOST_ENTRIES:]


def _condition_entries(asset: DERAsset) -> Iterator[Entry]:
    for each in asset.status.conditions:
        words = f"{each.type} became {each.status} ({each.reason})"
        words += f": {each.message}" if each.message else ""
        yield Entry(each.last_transition_time, "Condition", asset.metadata.name, clean(words))


def _dispatch_entries(dispatch: Dispatch) -> Iterator[Entry]:
    for step in dispatch.status.history:
        words = clean(
            f"{step.phase} ({step.reason}), says the {step.actor.lower()}: {step.message}"
        )
        yield Entry(step.at, "Dispatch", dispatch.metadata.name, words)


def _stored_entries(name: str, stored: Stored) -> Iterator[Entry]:
    for each in stored.connections:
        words = ": ".join(filter(None, (each.event, each.reason, each.message)))
        yield Entry(each.at, "Connection", name, clean(words))
    for gap in stored.gaps:
        words = f"{gap.samples} samples until {instant(gap.end)} were dropped ({gap.reason})"
        yield Entry(gap.start, "Gap", name, clean(words))
