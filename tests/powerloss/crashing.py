"""Cuts the power at random points of recordings, and looks at what the stores say afterwards."""

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.powerloss.disk import Disk, Image, read_folder, write_image
from tests.powerloss.recording import Kind, Operation, State, Told, record
from tests.powerloss.stores import STORES
from tests.stack import places

_GENERATIONS = 4
_CRASHES = 100
"""In each generation."""

_STEPS_AFTERWARDS = 3


@dataclass(slots=True)
class Report:
    """What was done and found."""

    store: str
    seed: int
    crashes: int = 0
    recordings: int = 0
    operations: int = 0
    lost_something: int = 0
    """How often the disk did not hold all that was written."""

    tells: int = 0
    """How often anybody was told of a state, on which the store may not go back."""

    violations: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Take what another run found."""
        self.crashes += other.crashes
        self.recordings += other.recordings
        self.operations += other.operations
        self.lost_something += other.lost_something
        self.tells += other.tells
        self.violations += other.violations

    def line(self) -> dict[str, object]:
        """Return it for people and programs."""
        return {
            "store": self.store,
            "seed": self.seed,
            "crashes": self.crashes,
            "recordings": self.recordings,
            "operations": self.operations,
            "lost_something": self.lost_something,
            "tells": self.tells,
            "violations": len(self.violations),
        }

    def shortfalls(self, crashes: int) -> list[str]:
        """Return in what this was too little to say that a store keeps its promises."""
        recordings = -(-crashes // _CRASHES)
        least = {
            "crashes": crashes,
            "recordings": recordings,
            "operations": 10 * recordings,
            "tells": recordings,
            "lost_something": crashes // 20,
        }
        return [
            f"{self.store}: {name} {getattr(self, name)}, fewer than {number}"
            for name, number in least.items()
            if getattr(self, name) < max(1, number)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crash:
    """The power is gone; ``told`` before, and ``after`` where it had stayed."""

    point: int
    model: str
    image: Image
    told: list[Told]
    after: State | None
    lost_something: bool = False


def crash(
    store: str, *, crashes: int, seed: int, ignores: Callable[[str], bool] = lambda _: False
) -> Report:
    """Cut the power so many times.

    Args:
        store: Its name in ``stores.STORES``.
        crashes: How often.
        seed: Chooses what is done, when the power goes, and what the disk holds then.
        ignores: Names of files whose syncs do nothing; for tests.
    """
    report = Report(store, seed)
    rng = random.Random(f"{store} {seed}")
    while report.crashes < crashes:
        with tempfile.TemporaryDirectory(dir=places.MEMORY) as place:
            (Path(place) / "files").mkdir()
            last = _Crash(point=0, model="", image={}, told=[], after=None)
            for _ in range(_GENERATIONS):
                count = min(_CRASHES, crashes - report.crashes)
                last = _play(report, Path(place), rng, last, count, ignores)
                if report.violations or report.crashes == crashes:
                    break
    return report


def undisturbed(store: str, *, seed: int) -> list[str]:
    """Let the power stay on, and return what is wrong then: that nothing is, is to be shown first.

    Args:
        store: Its name in ``stores.STORES``.
        seed: Chooses what is done.
    """
    rng = random.Random(f"{store} {seed}")
    told: list[Told] = []
    # One that is about to begin anew may hold anything.
    while not told or told[-1].losing:
        with tempfile.TemporaryDirectory(dir=places.MEMORY) as place:
            folder = Path(place) / "files"
            folder.mkdir()
            disk = Disk(folder)
            operations = record(store, folder, Path(place) / "journal", rng)
            for operation in operations:
                disk.apply(operation)
            told = [each.told for each in operations if each.kind is Kind.TELL]
            if not told:
                return [f"{store}: nobody was told anything"]
            whole = _Crash(
                point=len(operations), model="whole", image=disk.whole(), told=told, after=None
            )
            problems = _look(store, whole, Path(place) / "image", rng)
    return [f"{store}: {each}" for each in problems]


def _play(
    report: Report,
    place: Path,
    rng: random.Random,
    last: _Crash,
    count: int,
    ignores: Callable[[str], bool],
) -> _Crash:
    """Record what follows on the ``last`` loss of power, and try others at points of it.

    Returns:
        One of them, whose files are there now.
    """
    folder, journal = place / "files", place / "journal"
    disk = Disk(folder, ignores=ignores)
    operations = record(report.store, folder, journal, rng)
    report.recordings += 1
    report.operations += len(operations)
    report.tells += sum(each.kind is Kind.TELL for each in operations)
    points = sorted(_points(operations, count, rng))
    next_last = rng.choice(points)
    for each in _images(disk, operations, points, rng, last):
        report.crashes += 1
        report.lost_something += each.lost_something
        for problem in _look(report.store, each, place / "image", rng):
            where = f"seed {report.seed}, {each.point} of {len(operations)}, {each.model}"
            report.violations.append(f"{report.store}, {where}: {problem}")
        if each.point == next_last:
            chosen = each
    assert disk.whole() == read_folder(folder), "something happened to a file unseen"
    journal.unlink()
    shutil.rmtree(folder)
    folder.mkdir()
    write_image(chosen.image, folder)
    return chosen


def _points(operations: Sequence[Operation], count: int, rng: random.Random) -> Iterator[int]:
    """Yield points to cut the power at; many right after something was told, where most is due."""
    tells = {n + 1: each.told for n, each in enumerate(operations) if each.kind is Kind.TELL}
    firsts = {told.process: n for n, told in reversed(tells.items())}
    for _ in range(count):
        anywhere = rng.randint(0, len(operations))
        yield rng.choice((anywhere, rng.choice(list(tells)), rng.choice(list(firsts.values()))))


def _images(
    disk: Disk,
    operations: Sequence[Operation],
    points: Sequence[int],
    rng: random.Random,
    last: _Crash,
) -> Iterator[_Crash]:
    """Yield what is left if the power goes at each of some points, after the ``last`` time."""
    tells = [(n, each.told) for n, each in enumerate(operations) if each.kind is Kind.TELL]
    done = 0
    for point in points:
        for operation in operations[done:point]:
            disk.apply(operation)
        done = point
        strict = rng.random() < 0.5
        image = disk.crash(rng, strict=strict)
        before = [each for n, each in tells if n < point]
        later = [each.state for n, each in tells if n >= point]
        yield _Crash(
            point=point,
            model="strict" if strict else "journaled",
            image=image,
            lost_something=image != disk.whole(),
            told=last.told + before,
            after=next(iter(later), None if before else last.after),
        )
    for operation in operations[done:]:
        disk.apply(operation)


def _look(store: str, crash: _Crash, folder: Path, rng: random.Random) -> list[str]:
    """Open what is left with the real code, judge it, go on working, and open it again."""
    folder.mkdir()
    try:
        write_image(crash.image, folder)
        opened = STORES[store](folder)
        try:
            problems = opened.problems(opened.state(), crash.told, crash.after)
            for _ in range(_STEPS_AFTERWARDS):
                opened.step(rng)
            left = opened.state()
        finally:
            opened.close()
        again = STORES[store](folder)
        found = again.state()
        again.close()
        if found != left:
            problems.append(f"did not go on: left {left}, found {found}")
        return problems + _broken_files(folder)
    except Exception as error:  # whatever it is, a store did not open or did not go on
        return [f"{type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(folder)


def _broken_files(folder: Path) -> list[str]:
    problems = []
    for path in folder.rglob("*.db"):
        with closing(sqlite3.connect(path)) as connection:
            (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
        if answer != "ok":
            problems.append(f"{path.name}: {answer}")
    return problems
