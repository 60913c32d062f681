"""``make kills``: kill -9 of operator, gateway and agents while dispatches run.

DEROPS_SEED chooses the moments (random, and printed, without), DEROPS_ROUNDS how many kills there
are (100).
"""

import os
import secrets
import signal
import sys

from tests.e2e.acting import Pilot
from tests.kills.rounds import Rounds, plan
from tests.stack.stack import Stack

_SAY_EVERY = 10


def main() -> int:
    """Run; 0 means that every dispatch ended true, and that enough of them met a kill."""
    # What was started ends with us, however we are told to.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = int(os.environ.get("DEROPS_SEED") or secrets.randbelow(2**31))
    rounds = int(os.environ.get("DEROPS_ROUNDS") or 100)
    print(f"seed {seed}, {rounds} kills", flush=True)
    with Stack() as stack:
        pilot = Pilot(stack, "kills")
        pilot.create_namespace()
        playing = Rounds(pilot, seed)
        playing.begin()
        wrong = playing.play_undisturbed()
        print("\n".join([f"without a kill: {len(wrong)} wrong", *wrong]), flush=True)
        if wrong:
            return 1
        for each in plan(rounds, seed):
            playing.play(each)
            if (each.number + 1) % _SAY_EVERY == 0:
                print(playing.report.line(), flush=True)
    short = playing.report.shortfalls(rounds)
    print("\n".join([playing.report.line(), *short]), flush=True)
    return 1 if playing.report.violations or short else 0


sys.exit(main())
