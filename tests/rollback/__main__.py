"""``make rollback``: upgrade from an earlier release, and roll back to it, program by program.

PREVIOUS names its commit, or several. Its wheel is built, with the libraries of its lock file.
"""

import os
import signal
import sys
import time
from pathlib import Path

from tests.rollback.playing import ORDER, Releases, Report
from tests.rollback.releases import Release, install
from tests.stack.stack import Stack

PREVIOUS = ("308251f", "38079e5")
REFUSES = {"38079e5e6ba5": {"writer", "agent"}}
"""By release: the programs of it that cannot use a store of this one. Each must say so."""


def main() -> int:
    """Play each release; 0 means nothing lost, nothing untrue, and only known refusals."""
    # What was started ends with us, however we are told to.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commits = (os.environ.get("PREVIOUS") or " ".join(PREVIOUS)).split()
    failed = False
    for commit in commits:
        began = time.monotonic()
        release = install(commit)
        report = play(release)
        expected = REFUSES.get(release.commit, set())
        print(
            f"{release.commit}: {report.dispatches} dispatches, {len(report.violations)} untrue; "
            f"{report.samples} samples, {report.lost} lost; not rolled back: "
            f"{', '.join(report.refused) or 'nothing'}; conditions left behind: "
            f"{', '.join(sorted(report.left_behind)) or 'none'}; {time.monotonic() - began:.0f} s"
        )
        print(*report.violations, sep="\n", flush=True)
        if set(report.refused) != expected:
            print(f"refused: {report.refused}, expected of {expected or 'nobody'}")
        failed |= bool(report.violations or report.lost or set(report.refused) != expected)
    return int(failed)


def play(release: Release) -> Report:
    """Have a release installed, upgrade each program and roll each back."""
    parts = [part for part in ORDER if part != "api" or release.has("derops_headend/api")]
    programs: dict[str, Path] = {part: release.programs for part in parts if part != "operator"}
    print(f"installed: {release.commit}; {', '.join(parts)}", flush=True)
    with Stack(programs=programs) as stack:
        playing = Releases(stack, release, parts)
        playing.begin()
        playing.play()
        return playing.report


sys.exit(main())
