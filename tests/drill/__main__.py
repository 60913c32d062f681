"""``make drill``: break one thing, say only the symptom, and wait for ``diagnose`` to name it.

DEROPS_FAULTS chooses what is broken (names with semicolons between, or all), DEROPS_ROUNDS how many
faults there are without it (1), DEROPS_SEED which they are, of which asset, and in which order
(random, and printed, without). With DEROPS_PLAY=1 a person is asked instead of the command.
"""

import os
import random
import secrets
import signal
import sys
import time

from tests.drill.faults import FAULTS, choose
from tests.drill.ground import prepared
from tests.drill.playing import COMMAND_SECONDS, Drill, table
from tests.e2e.acting import Pilot
from tests.stack.stack import Stack

_QUIET_SECONDS = 30


def main() -> int:
    """Run; 0 means that the first answer was right each time, and that nothing stayed broken."""
    # What was started ends with us, however we are told to.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = int(os.environ.get("DEROPS_SEED") or secrets.randbelow(2**31))
    rounds = int(os.environ.get("DEROPS_ROUNDS") or 1)
    wanted = os.environ.get("DEROPS_FAULTS", "")
    rng = random.Random(seed)
    chosen = choose(wanted, rounds, rng)
    if not chosen:
        print(f"nothing is called {wanted!r}; there are: {', '.join(f.name for f in FAULTS)}")
        return 1
    print(f"seed {seed}, {len(chosen)} of {len(FAULTS)} faults", flush=True)
    with Stack() as stack:
        pilot = Pilot(stack, "drill")
        pilot.create_namespace()
        with prepared(pilot) as (ground, on_call):
            drill = Drill(ground, on_call, lambda text: print(text, flush=True))
            quiet = drill.stay_quiet(rng.choice(FAULTS[0].assets), _QUIET_SECONDS)
            print("\n".join([f"with nothing broken: {len(quiet)} wrong", *quiet]), flush=True)
            if os.environ.get("DEROPS_PLAY"):
                right = [
                    drill.ask_a_person(each, rng.choice(each.assets), input) for each in chosen
                ]
                print(f"{sum(right)} of {len(right)} right", flush=True)
                return 0
            outcomes = []
            for each in chosen:
                began = time.monotonic()
                outcomes.append(drill.play(each, rng.choice(each.assets)))
                print(f"  {each.name}; {time.monotonic() - began:.0f} s in all", flush=True)
    wrong = quiet + [words for each in outcomes for words in each.wrong]
    slow = sum(each.command_seconds > COMMAND_SECONDS for each in outcomes)
    right_count = sum(each.right for each in outcomes)
    print("\n".join([*table(outcomes), *wrong]))
    print(
        f"{right_count} of {len(outcomes)} right; the command took longer than "
        f"{COMMAND_SECONDS} s in {slow}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return 1 if wrong else 0


sys.exit(main())
