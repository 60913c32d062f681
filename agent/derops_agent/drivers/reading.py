"""Reading the same values of one unit each time, although it refuses or does not answer some.

Registers that lie together are read in one request. A request that the device refuses is split
until the reader knows which values it refuses; the others keep coming, in few requests. What the
device does not answer is asked again ever more rarely, so that it does not hold up the rest.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from derops.errors import DeviceError, DeviceRefusedError, DeviceTimeoutError
from derops_agent.clock import Clock
from derops_agent.drivers.modbus_answers import AnsweredError, NotAskedError
from derops_agent.drivers.modbus_tcp import MOST_REGISTERS, Table, Unit
from derops_agent.drivers.modbus_turns import NO_TURN

_FIRST_WAIT_SECONDS = 1.0
_MOST_SECONDS_REFUSED = 5.0
_MOST_SECONDS_SILENT = 60.0  # each question takes its whole time-out from the units on the line
_AGAIN_SECONDS = 1.0  # for what was silent before; a sample takes two seconds at most
_MOST_AGAIN = 4  # in one sample, of what is refused

Words: TypeAlias = Mapping[tuple[Table, int], bytes]
"""Two bytes for each register, by its table and number."""


class RegisterSpan(NamedTuple):
    """Registers of one value: they may change together, so they are never read apart."""

    table: Table
    start: int
    length: int
    """How many registers."""


Run: TypeAlias = tuple[RegisterSpan, ...]
"""Spans that one request reads, as long as the device takes that."""


def join(spans: Iterable[RegisterSpan], *, over_gaps: bool = False) -> list[Run]:
    """Return the fewest requests that read all spans.

    Args:
        spans: In any order; those that overlap or are there twice are read once.
        over_gaps: Whether registers in between may be read too. Devices refuse a request with a
            register that they do not have.
    """
    runs: list[list[RegisterSpan]] = []
    for span in sorted(set(spans)):
        if runs and runs[-1][-1].table == span.table:
            _, first, count = extent(runs[-1])
            fits = span.start + span.length - first <= MOST_REGISTERS
            if fits and (over_gaps or span.start <= first + count):
                runs[-1].append(span)
                continue
        runs.append([span])
    return [tuple(run) for run in runs]


def extent(run: Sequence[RegisterSpan]) -> RegisterSpan:
    """Return all registers from the first of a run to its last."""
    first = run[0].start
    return RegisterSpan(run[0].table, first, max(each.start + each.length for each in run) - first)


@dataclass(frozen=True, slots=True)
class Answers:
    """What a unit answered."""

    words: Words
    problems: Mapping[RegisterSpan, str]
    """Which spans that were asked for are absent, and why."""

    silent: frozenset[RegisterSpan] = frozenset()
    """Which of these had no answer at all, so that the device may have them."""


class Whole:
    """Reads what is needed as a whole, and remembers how large a request the unit takes."""

    def __init__(self, unit: Unit, runs: Iterable[Run]) -> None:
        self._unit, self._runs = unit, list(runs)

    async def read(self) -> Words:
        """Read all spans.

        Raises:
            DeviceError: Something could not be read.
        """
        words: dict[tuple[Table, int], bytes] = {}
        left, taken = list(self._runs), list[Run]()
        while left:
            run = left.pop(0)
            try:
                words |= await _read(self._unit, run)
            except (DeviceRefusedError, AnsweredError):
                if len(run) == 1:
                    raise
                middle = len(run) // 2
                left = [run[:middle], run[middle:], *left]
            else:
                taken.append(run)
        self._runs = taken
        return words


@dataclass(slots=True)
class _Bad:
    """Values that do not come, and when they are asked for again."""

    run: Run
    problem: str
    silent: bool
    due_us: int
    wait_seconds: float = _FIRST_WAIT_SECONDS


@dataclass(slots=True)
class _Look:
    """One sample on its way."""

    words: dict[tuple[Table, int], bytes] = field(default_factory=dict)
    answered: bool = False
    """Whether the unit answered anything; if not, perhaps the whole unit is silent."""


class Reader:
    """Reads the same values of one unit each time, and remembers which of them do not come."""

    def __init__(self, unit: Unit, runs: Iterable[Run], clock: Clock) -> None:
        self._unit, self._runs, self._clock = unit, list(runs), clock
        self._bad: list[_Bad] = []
        self._cuts: set[RegisterSpan] = set()
        """Spans that begin a request: the device refuses them together with those before."""

        self._silent = False
        self._turn = 0

    async def read(self, *, is_there: bool = False) -> Answers:
        """Read what can be read.

        Args:
            is_there: Whether the unit has just answered; then silence is that of single values.

        Raises:
            DeviceTimeoutError: The unit answered nothing, or was not asked everything.
        """
        look = _Look(answered=is_there)
        if self._silent:
            await self._find_life(look)
        for run in list(self._wanted()):
            await self._ask(run, look)
        await self._ask_again(look)
        return Answers(
            look.words,
            {span: each.problem for each in self._bad for span in each.run},
            frozenset(span for each in self._bad if each.silent for span in each.run),
        )

    def _wanted(self) -> Iterator[Run]:
        bad = {span for each in self._bad for span in each.run}
        for run in self._runs:
            part: list[RegisterSpan] = []
            for span in run:
                if part and (span in bad or span in self._cuts):
                    yield tuple(part)
                    part = []
                if span not in bad:
                    part.append(span)
            if part:
                yield tuple(part)

    async def _find_life(self, look: _Look) -> None:
        """Ask for one value, each time another: one of them may make the unit silent."""
        spans = [span for run in self._runs for span in run]
        self._turn = (self._turn + 1) % len(spans)
        try:
            await _read(self._unit, (spans[self._turn],))
        except DeviceTimeoutError as error:
            if not isinstance(error, AnsweredError):
                raise
        except DeviceRefusedError:
            pass
        self._silent, look.answered = False, True

    async def _ask(self, run: Run, look: _Look) -> None:
        try:
            words = await _read(self._unit, run)
        except (DeviceRefusedError, AnsweredError) as error:
            look.answered = True
            await self._split(run, error, look)
        except NotAskedError:
            raise
        except DeviceTimeoutError as error:
            if not look.answered:
                self._silent = True
                raise
            self._set_bad(run, str(error), silent=True)
        except asyncio.CancelledError as error:
            # The time of the sample is over: this is asked last in the next one.
            problem = ": ".join(["no answer within the time of a sample", *map(str, error.args)])
            self._set_bad(run, problem, silent=True, due=True)
            raise
        else:
            look.answered = True
            look.words |= words

    async def _split(self, run: Run, error: DeviceError, look: _Look) -> None:
        if len(run) == 1:
            self._set_bad(run, str(error), silent=False)
            return
        known, middle = len(self._bad), len(run) // 2
        for part in (run[:middle], run[middle:]):
            await self._ask(part, look)
        if len(self._bad) == known:
            self._cuts.add(run[middle])

    async def _ask_again(self, look: _Look) -> None:
        for bad in self._due_again(look):
            self._bad.remove(bad)
            await self._ask_bad(bad, look)

    def _due_again(self, look: _Look) -> list[_Bad]:
        """Return what is asked again in this sample."""
        now_us = self._clock.monotonic_us()
        waiting = sorted(self._bad, key=lambda each: each.due_us)
        if not look.answered:
            return waiting[:1]  # a sample of nothing would say of a dead unit that it answers
        due = [each for each in waiting if each.due_us <= now_us]
        refused, silent = ([each for each in due if each.silent is how] for how in (False, True))
        return refused[:_MOST_AGAIN] + silent[:1]

    async def _ask_bad(self, bad: _Bad, look: _Look) -> None:
        try:
            async with asyncio.timeout(_AGAIN_SECONDS if look.answered else None):
                words = await _read(self._unit, bad.run)
        except (DeviceRefusedError, AnsweredError) as error:
            look.answered = True
            if len(bad.run) > 1:
                await self._split(bad.run, error, look)
            else:
                self._wait_longer(bad, str(error), silent=False)
        except NotAskedError:
            self._bad.append(bad)
            raise
        except (DeviceTimeoutError, TimeoutError) as error:
            self._bear_silence(bad, error, look)
        except asyncio.CancelledError as error:
            self._bear_end(bad, error)
            raise
        else:
            look.answered = True
            look.words |= words

    def _bear_silence(self, bad: _Bad, error: DeviceError | TimeoutError, look: _Look) -> None:
        problem = str(error) or bad.problem
        if not look.answered:
            self._bad.append(bad)
            self._silent = True
            raise DeviceTimeoutError(problem)
        if _had_no_turn(error.__cause__):
            self._bad.append(bad)
        elif len(bad.run) > 1:
            middle = len(bad.run) // 2
            for part in (bad.run[:middle], bad.run[middle:]):
                self._set_bad(part, problem, silent=True)
        else:
            self._wait_longer(bad, problem, silent=True)

    def _bear_end(self, bad: _Bad, error: asyncio.CancelledError) -> None:
        """Put off the request that ran out of time; what was not asked yet is not put off."""
        if _had_no_turn(error):
            self._bad.append(bad)
        else:
            self._wait_longer(bad, bad.problem, silent=True)

    def _set_bad(self, run: Run, problem: str, *, silent: bool, due: bool = False) -> None:
        wait_us = 0 if due else round(_FIRST_WAIT_SECONDS * 1e6)
        due_us = self._clock.monotonic_us() + wait_us
        self._bad.append(_Bad(run=run, problem=problem, silent=silent, due_us=due_us))

    def _wait_longer(self, bad: _Bad, problem: str, *, silent: bool) -> None:
        most = _MOST_SECONDS_SILENT if silent else _MOST_SECONDS_REFUSED
        seconds = min(2 * bad.wait_seconds, most)
        due_us = self._clock.monotonic_us() + round(seconds * 1e6)
        self._bad.append(
            _Bad(run=bad.run, problem=problem, silent=silent, due_us=due_us, wait_seconds=seconds)
        )


def _had_no_turn(error: BaseException | None) -> bool:
    return error is not None and NO_TURN in error.args


async def _read(unit: Unit, run: Run) -> Words:
    table, start, count = extent(run)
    data = await unit.read(start, count, table)
    return {(table, start + at): data[2 * at : 2 * at + 2] for at in range(count)}
