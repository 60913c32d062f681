"""``make powerloss``: cut the power while the stores write, many times over.

DEROPS_SEED chooses what is done, when the power goes and what the disk holds then (random, and
printed, without); DEROPS_CRASHES how often it goes, for all stores together (10,000).
"""

import json
import os
import secrets
import sys
from concurrent.futures import ProcessPoolExecutor

import structlog
from tests.powerloss.crashing import Report, crash, undisturbed
from tests.powerloss.stores import STORES

_AT_A_TIME = 500
_SHOWN = 3


def main() -> int:
    """Run; 0 means that no promise was broken, and enough was tried to say so."""
    seed = int(os.environ.get("DEROPS_SEED") or secrets.randbelow(2**31))
    crashes = int(os.environ.get("DEROPS_CRASHES") or 10_000)
    each = -(-crashes // len(STORES))
    print(f"seed {seed}, {each} losses of power for each store", flush=True)
    _be_quiet()
    wrong = [each for store in STORES for each in undisturbed(store, seed=seed)]
    print("\n".join([f"while the power stays on: {len(wrong)} violations", *wrong]), flush=True)
    if wrong:
        return 1
    broken = 0
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=_be_quiet) as pool:
        parts = {
            store: [
                pool.submit(crash, store, crashes=min(_AT_A_TIME, each - done), seed=seed + done)
                for done in range(0, each, _AT_A_TIME)
            ]
            for store in STORES
        }
        for store, running in parts.items():
            total = Report(store, seed)
            for part in running:
                total.add(part.result())
            short = total.shortfalls(each)
            told = [json.dumps(total.line()), *total.violations[:_SHOWN], *short]
            print("\n".join(told), flush=True)
            broken += len(total.violations) + len(short)
    return 1 if broken else 0


def _be_quiet() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


if __name__ == "__main__":  # the pool's processes may import this
    sys.exit(main())
