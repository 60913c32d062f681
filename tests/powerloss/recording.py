"""What a process does to its files, and what it is told meanwhile, in one order.

A child process drives a real store; the library ``recording.c`` is loaded into it and writes each
change of a file into a journal. The child writes there, too, what the store has answered: whoever
heard that may rely on it.
"""

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from tests.stack import places

State = dict[str, Any]
"""What a store holds, as its real API tells it."""

_HEADER = struct.Struct("=IIQQQ")
_ROOTS = ("agent", "headend", ".")
_RUNS = (4, 12)


class Kind(IntEnum):
    """What happened; the same numbers as in ``recording.c``."""

    WRITE = 1
    TRUNCATE = 2
    SYNC = 3
    CREATE = 4
    UNLINK = 5
    RENAME = 6
    MKDIR = 7
    TELL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Somebody heard of a state."""

    state: State
    losing: bool = False
    """Whether the store is about to give it up, and to begin anew."""

    process: int = field(default_factory=os.getpid)


@dataclass(frozen=True, slots=True)
class Operation:
    """One change of a file, or one thing that was told."""

    kind: Kind
    path: str
    inode: int
    offset: int
    data: bytes

    @property
    def told(self) -> Told:
        """What was told."""
        return Told(**json.loads(self.data))


def tell(journal: Path, told: Told) -> None:
    """Write down that somebody was told of a state."""
    data = json.dumps(asdict(told)).encode()
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, _HEADER.pack(Kind.TELL, 0, 0, 0, len(data)) + data)
    os.close(descriptor)


def read(journal: Path) -> list[Operation]:
    """Return all of a journal, in order."""
    return list(_parse(journal.read_bytes()))


def _parse(content: bytes) -> Iterator[Operation]:
    at = 0
    while at < len(content):
        kind, path_length, inode, offset, data_length = _HEADER.unpack_from(content, at)
        data_at = at + _HEADER.size + path_length
        at = data_at + data_length
        path = content[data_at - path_length : data_at].decode()
        yield Operation(Kind(kind), path, inode, offset, content[data_at:at])


def record(store: str, folder: Path, journal: Path, rng: random.Random) -> list[Operation]:
    """Let processes drive a store, one after the other; all but the last may be killed.

    Args:
        store: Its name in ``stores.STORES``.
        folder: Where its files are.
        journal: The file to write.
        rng: Chooses what is done, and when it is killed.
    """
    runs = []
    for rest in reversed(range(rng.randint(*_RUNS))):
        kill_before = rng.randint(1, 12) if rest else 0
        runs.append(f"{rng.getrandbits(32)},{kill_before}")
    run(["-m", "tests.powerloss.child", store, str(folder), str(journal), *runs], folder, journal)
    return read(journal)


def run(arguments: list[str], folder: Path, journal: Path) -> None:
    """Run Python under the recorder."""
    environment = os.environ | {
        "LD_PRELOAD": str(library()),
        "RECORD_FOLDER": str(folder),
        "RECORD_JOURNAL": str(journal),
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(str(places.REPOSITORY / root) for root in _ROOTS),
    }
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True)
    if ended.returncode:
        raise RuntimeError(f"{command}: {ended.stderr.decode()}")


@cache
def library() -> Path:
    """Return the recorder, compiled."""
    source = Path(__file__).with_name("recording.c")
    target = places.BUILD / "recording.so"
    target.parent.mkdir(exist_ok=True)
    made = target.with_name(f"{target.name}.{os.getpid()}")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", made, source, "-ldl", "-lpthread"],
        check=True,
    )
    return made.replace(target)
