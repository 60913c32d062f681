"""Breaks one thing after another; says when ``diagnose`` named it, and whether it was right."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.alerts.watching import look_for
from tests.drill.faults import Fault
from tests.drill.ground import Ground
from tests.drill.on_call import OnCall, Said
from tests.stack.places import REPOSITORY

NAMED_WITHIN_SECONDS = 300
"""An operator that died is silent after 150 s."""

MENDED_WITHIN_SECONDS = 300
COMMAND_SECONDS = 5

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one fault went."""

    fault: Fault
    said: tuple[str, ...]
    """What the command named, one after the other; the first is what somebody would act upon."""

    seconds: float | None
    """From the break until it named the truth; None = it never did."""

    command_seconds: float
    """The longest run of the command."""

    runbook: str
    mended: bool
    """Whether the command said at the end that data flows again."""

    @property
    def right(self) -> bool:
        """Whether the first thing that was named is the truth."""
        return self.said[:1] == (self.fault.truth,)

    @property
    def page_exists(self) -> bool:
        """Whether the runbook that it named is a page."""
        return bool(self.runbook) and (REPOSITORY / self.runbook).is_file()

    @property
    def wrong(self) -> list[str]:
        """What is not as it should be, in words."""
        checks = {
            f"it is {self.fault.truth}, and was told to be {self.said or 'nothing'}": self.right,
            f"there is no page {self.runbook or 'named'}": self.page_exists or not self.said,
            "no data flowed after it was mended": self.mended,
        }
        return [f"{self.fault.name}: {words}" for words, good in checks.items() if not good]


class Drill:
    """Plays faults for somebody on call."""

    def __init__(self, ground: Ground, on_call: OnCall, say: Say) -> None:
        self._ground, self._on_call, self._say = ground, on_call, say

    def stay_quiet(self, asset: str, seconds: float) -> list[str]:
        """Return what the command says other than that data flows, with nothing broken."""
        self._wait_until_flows(asset)
        return [
            f"nothing is broken, and was told to be: {said.words}"
            for _, said in self._answers(f"no data from {asset}", seconds)
            if not said.flows
        ]

    def play(self, fault: Fault, asset: str) -> Outcome:
        """Break something until the command names it, mend it, and wait until data flow."""
        symptom = fault.symptom(asset)
        self._say(f"{symptom}")
        named: list[str] = []
        answers: list[Said] = []
        seconds = None
        with fault.broken(self._ground, asset):
            for passed, said in self._answers(symptom, NAMED_WITHIN_SECONDS):
                answers.append(said)
                if said.cause and said.cause not in named[-1:]:
                    named.append(said.cause)
                    self._say(f"  after {passed:.0f} s: {said.cause}: {said.words}")
                if said.cause == fault.truth:
                    seconds = passed
                    break
        return Outcome(
            fault=fault,
            said=tuple(named),
            seconds=seconds,
            command_seconds=max(each.seconds for each in answers),
            runbook=answers[-1].runbook,
            mended=self._wait_until_flows(asset),
        )

    def ask_a_person(self, fault: Fault, asset: str, listen: Callable[[], str]) -> bool:
        """Break something, and have somebody name it; return whether that was right."""
        with fault.broken(self._ground, asset):
            began = time.monotonic()
            self._say(
                f"\n{fault.symptom(asset)}, in namespace {self._on_call.namespace}. Find out why:\n"
                f"  export KUBECONFIG={self._on_call.kubeconfig}\n"
                f"  export PATH={REPOSITORY}/.venv/bin:$PATH\n"
                "Then type the reason here, such as DeviceSilent; of a dispatch, where it stopped:"
            )
            answer = listen().strip()
            passed = time.monotonic() - began
            said = self._on_call.ask(fault.symptom(asset))
        right = bool(answer) and answer.casefold() in fault.truth.casefold().split(": ")
        self._say(
            f"{'right' if right else 'wrong'}, after {passed:.0f} s: {fault.name}, "
            f"{fault.truth}; diagnose says {said.cause or said.words}; "
            f"its runbook is {said.runbook or 'none'}, and its alert {fault.alert}"
        )
        self._wait_until_flows(asset)
        return right

    def _wait_until_flows(self, asset: str) -> bool:
        answers = self._answers(f"no data from {asset}", MENDED_WITHIN_SECONDS)
        return any(said.flows for _, said in answers)

    def _answers(self, symptom: str, seconds: float) -> Iterator[tuple[float, Said]]:
        """Ask again and again; yield when each answer came, in s from the start, with it."""
        began = time.monotonic()
        for _ in look_for(seconds):
            said = self._on_call.ask(symptom)
            yield time.monotonic() - began, said


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield what came of it, in Markdown."""
    yield "| fault | truth | said | right | s until named | s of the command | page | alert |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for each in outcomes:
        cells = (
            each.fault.name,
            each.fault.truth,
            ", then ".join(each.said) or "nothing",
            "yes" if each.right else "NO",
            "never" if each.seconds is None else f"{each.seconds:.0f}",
            f"{each.command_seconds:.1f}",
            each.runbook if each.page_exists else f"MISSING {each.runbook}",
            each.fault.alert,
        )
        yield f"| {' | '.join(cells)} |"
