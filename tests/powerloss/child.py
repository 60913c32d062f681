"""Drives a store and writes down what it tells, in processes that may be killed, one by one."""

import ctypes
import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

from tests.powerloss.recording import Told, tell
from tests.powerloss.stores import STORES, Store

_STEPS = 15


def main(name: str, folder: str, journal: str, *runs: str) -> None:
    """Run after run: its seed, and the number of the sync before which it is killed."""
    for each in runs:
        seed, kill_before = map(int, each.split(","))
        process = os.fork()
        if not process:
            ctypes.CDLL(None).record_kill_before(kill_before)
            _drive(name, Path(folder), Path(journal), random.Random(seed))
            return
        _, status = os.waitpid(process, 0)
        if status not in (0, signal.SIGKILL):
            sys.exit(1)


def _drive(name: str, folder: Path, journal: Path, rng: random.Random) -> None:
    """Take random steps, with a few new beginnings."""
    store = _opened(name, folder, journal)
    for _ in range(rng.randint(0, _STEPS)):
        if rng.random() < 0.1:
            store.close()
            store = _opened(name, folder, journal)
        elif rng.random() < 0.05:
            store.hurt(rng, partial(tell, journal, Told(state=store.state(), losing=True)))
        else:
            store.step(rng)
        tell(journal, Told(state=store.state()))
    store.close()


def _opened(name: str, folder: Path, journal: Path) -> Store:
    store = STORES[name](folder)
    tell(journal, Told(state=store.state()))
    return store


main(*sys.argv[1:])
