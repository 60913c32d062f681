"""Somebody who knows a symptom and has ``kubectl derops``: what it says, and how long it takes."""

from dataclasses import dataclass

from tests.cli import clusters
from tests.e2e.acting import TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the command said once."""

    code: int
    cause: str
    """Reason of the first broken link, or where a dispatch stopped and why; empty = nothing is."""

    runbook: str
    seconds: float
    """How long the command took."""

    words: str
    """What it said, or why it said nothing, for a person."""

    @property
    def flows(self) -> bool:
        """Whether it said that nothing is broken, and that it has seen all."""
        return self.code == 0 and self.words == "Flows"


@dataclass(frozen=True, slots=True)
class OnCall:
    """Somebody with the rights of a viewer, and without access to the API."""

    kubeconfig: str
    namespace: str

    def ask(self, symptom: str) -> Said:
        """Diagnose the asset or, if the symptom begins with ``dispatch``, that dispatch."""
        kind, _, name = symptom.rpartition(" ")
        subject = ("--dispatch", name) if kind == "dispatch" else (name,)
        ran = clusters.run(
            "diagnose", *subject, "-n", self.namespace, "-o", "json", kubeconfig=self.kubeconfig
        )
        if ran.code not in (0, 1):
            return Said(code=ran.code, cause="", runbook="", seconds=ran.seconds, words=ran.err)
        found = ran.json
        cause = found["reason"] or ""
        if kind == "dispatch":
            stopped = found["stoppedAt"] or ""
            # Before its end it has the reason of its phase, not of what it waits for.
            cause = f"{stopped}: {cause}" if found["phase"] in TERMINAL else stopped
        return Said(
            code=ran.code,
            cause=cause if ran.code else "",
            runbook=found["runbook"] or "",
            seconds=ran.seconds,
            words=found["verdict"] if not ran.code else found.get("message") or found["reason"],
        )
