"""``make alerts``: break things for real; a real Prometheus must tell of each, and of nothing else.

DEROPS_CAUSES chooses which (names with commas between; all), DEROPS_QUIET_SECONDS for how long
nothing is broken at first (300). ``for`` and ranges of the rules are cut, see ``watching.py``.
"""

import os
import signal
import sys

from tests.alerts.causes import CAUSES
from tests.alerts.playing import Playing, begin, wait_until_watched
from tests.alerts.watching import LONGEST_FOR_SECONDS, LONGEST_RANGE_SECONDS, watching
from tests.e2e.acting import Pilot
from tests.stack.stack import PARTS, Stack


def main() -> int:
    """Run; 0 means that every cause was told by its alert, within two minutes, and by no other."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = [each.strip() for each in os.environ.get("DEROPS_CAUSES", "").split(",")]
    quiet_seconds = float(os.environ.get("DEROPS_QUIET_SECONDS") or 300)
    causes = [each for each in CAUSES if wanted == [""] or each.name in wanted]
    print(
        f"{len(causes)} causes; for: at most {LONGEST_FOR_SECONDS} s, ranges at most "
        f"{LONGEST_RANGE_SECONDS} s, limits as they are",
        flush=True,
    )
    with Stack() as stack:
        pilot = Pilot(stack, "alerts")
        pilot.create_namespace()
        begin(pilot)
        with watching(stack.data_directory, stack.ops_ports) as watch:
            wait_until_watched(watch, len(PARTS))
            playing = Playing(pilot, watch, lambda text: print(text, flush=True))
            playing.stay_quiet(quiet_seconds)
            playing.restart_all()
            for cause in causes:
                if cause.can_be_broken:
                    playing.play(cause)
                else:
                    print(f"NOT RUN, as there is no {cause.needs}: {cause.name}", flush=True)
    print("\n".join([f"{len(playing.wrong)} wrong", *playing.wrong]), flush=True)
    return 1 if playing.wrong else 0


sys.exit(main())
