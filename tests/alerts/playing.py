"""Breaks one thing after the other and says which alerts fired, and when."""

import json
from collections.abc import Callable, Mapping

from tests.alerts.breaking import ASSETS
from tests.alerts.causes import Cause
from tests.alerts.watching import Firing, Watch, look_for
from tests.e2e.acting import Pilot, battery_manifest
from tests.stack.stack import PARTS
from tests.waiting import eventually

FIRES_WITHIN_SECONDS = 120
CLEARS_WITHIN_SECONDS = 300
"""The longest range that a rule looks back over, and a fleet that comes back."""


class Playing:
    """Plays causes on a stack that is watched."""

    def __init__(
        self, pilot: Pilot, watch: Watch, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._pilot, self._watch, self._say = pilot, watch, say
        self.wrong: list[str] = []
        """What did not go as it should, in words."""

    def stay_quiet(self, seconds: float) -> None:
        """See that nothing fires while nothing is broken."""
        seen: set[Firing] = set()
        for _ in look_for(seconds):
            seen |= self._watch.firing()
        self._tell("nothing broken", {"seconds": seconds}, unexpected=seen)

    def restart_all(self) -> None:
        """Restart each program in turn, as an upgrade does, and see that nothing fires."""
        seen: set[Firing] = set()
        for part in PARTS:
            self._pilot.stack.parts[part].terminate()
            self._pilot.stack.restart(part)
            for _ in look_for(10):
                seen |= self._watch.firing()
        for _ in look_for(60):
            seen |= self._watch.firing()
        self._tell("restarted one after another", {}, unexpected=seen)

    def play(self, cause: Cause) -> None:
        """Break something until its alert fires, mend it, and wait until all is quiet."""
        seen: set[Firing] = set()
        fired = None
        with cause.broken(self._pilot):
            for passed in look_for(FIRES_WITHIN_SECONDS):
                seen |= self._watch.firing()
                if cause.alert in {each.name for each in seen}:
                    fired = passed
                    break
        cleared = None
        for passed in look_for(CLEARS_WITHIN_SECONDS):
            seen |= self._watch.firing()
            if not self._watch.names():
                cleared = passed
                break
        figures = {
            "alert": cause.alert,
            "fired_after_seconds": fired and round(fired),
            "cleared_after_seconds": cleared and round(cleared),
            "as_well": sorted({each.name for each in seen} & cause.may),
        }
        unexpected = {each for each in seen if each.name not in {cause.alert, *cause.may}}
        if fired is None:
            self.wrong.append(f"{cause.name}: {cause.alert} did not fire")
        if cleared is None:
            self.wrong.append(f"{cause.name}: {sorted(self._watch.names())} did not clear")
        self._tell(cause.name, figures, unexpected=unexpected)
        for each in sorted(seen):
            if each.name == cause.alert:
                self._say(f"  {each.description}")

    def _tell(self, what: str, figures: Mapping[str, object], *, unexpected: set[Firing]) -> None:
        names = sorted({each.name for each in unexpected})
        self._say(json.dumps({"what": what, **figures, "unexpected": names}))
        self.wrong += [f"{what}: {each.name}: {each.description}" for each in sorted(unexpected)]


def begin(pilot: Pilot) -> None:
    """Create the assets and wait until the operator says that their data flow."""
    pilot.apply_all([battery_manifest(name) for name in ASSETS])
    for name in ASSETS:
        pilot.wait_for_condition("derasset", name, "Connected", "True")


def wait_until_watched(watch: Watch, programs: int) -> None:
    """Wait until all programs are scraped, the assets are counted, and nothing is about to fire."""
    eventually(
        lambda: watch.query("count(derops_build_info)") == [({}, float(programs))],
        "all programs to be scraped",
    )
    eventually(
        lambda: (
            watch.query('sum(derops_operator_assets{reason="Flowing"})')
            == [({}, float(len(ASSETS)))]
        ),
        "the data of all assets to flow",
    )
    eventually(lambda: not watch.names(), "quiet")
