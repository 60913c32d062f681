"""What GitOps tools make of our objects: Flux by kstatus, Argo CD by the script in examples."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator.certifying import answered, certificate, request
from tests.operator.making import Story, acked, active, asset, dispatch, ended, view
from tests.operator.test_assets import after, decide
from tests.stack import build

UNSEEN: dict[str, Any] = {"observedGeneration": -1}
"""What the API server makes of an object without status: the default in the CRDs."""


ARGOCD = Path(__file__).resolve().parents[2] / "examples" / "argocd" / "argocd-cm.yaml"
SCRIPTS = "resource.customizations.health.derops.io_"
HEALTH = {"InProgress": "Progressing", "Current": "Healthy", "Failed": "Degraded"}


def computed(*objects: dict[str, Any]) -> list[str]:
    """Return InProgress, Current or Failed for each object, by kstatus; Argo CD says the same."""
    statuses = ask("kstatus", objects)
    # One that is being deleted is not shown to the script.
    shown = [
        (each, HEALTH[status])
        for each, status in zip(objects, statuses, strict=True)
        if status != "Terminating"
    ]
    script = yaml.safe_load(ARGOCD.read_text(encoding="utf-8"))["data"][
        SCRIPTS + objects[0]["kind"]
    ]
    healths = ask("argohealth", {"script": script, "objects": [each for each, _ in shown]})
    assert healths == [health for _, health in shown]
    return statuses


def ask(program: str, question: object) -> list[str]:
    done = subprocess.run(
        [build.program(program)],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=True,
    )
    answers: list[str] = json.loads(done.stdout)
    return answers


def of(kind: str, status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "derops.io/v1alpha1",
        "kind": kind,
        "metadata": {"namespace": "pilot", "name": "it", "generation": 1, **metadata},
        "status": status,
    }


def test_a_dispatch_on_its_way_and_accepted() -> None:
    story = Story().look(0.1)
    submitted = story.status
    accepted = story.look(1, view(report=acked())).status
    running = story.look(2, view(report=active())).status

    assert computed(
        of("Dispatch", UNSEEN),
        of("Dispatch", submitted),
        of("Dispatch", accepted),
        of("Dispatch", running),
        of("Dispatch", running, generation=2),
        of("Dispatch", running, deletionTimestamp="2027-01-15T08:00:00Z"),
    ) == ["InProgress", "InProgress", "Current", "Current", "InProgress", "Terminating"]


@pytest.mark.parametrize(
    ("phase", "health"),
    [
        ("Complete", "Current"),
        ("Cancelled", "Current"),
        ("Superseded", "Current"),
        ("Failed", "Failed"),
        ("Rejected", "Failed"),
        ("Expired", "Failed"),
    ],
)
def test_a_dispatch_that_ended(phase: str, health: str) -> None:
    story = Story().look(0.1).look(101, view(report=ended(phase, "Because")))

    assert computed(of("Dispatch", story.status)) == [health]


def test_a_dispatch_that_the_operator_refused() -> None:
    beyond = dispatch(setpoint={"mode": "ActivePower", "activePowerWatts": 900_000})

    assert computed(of("Dispatch", Story(beyond).look(1).status)) == ["Failed"]


def test_an_asset_does_not_wait_for_a_device_that_is_not_installed_yet() -> None:
    waiting = decide(accepted=False)
    stored = decide(after(asset(), waiting))
    denied = decide(requests=[answered(request(), "Denied", "no")], known=certificate())

    assert computed(
        of("DERAsset", UNSEEN),
        of("DERAsset", waiting.status),
        of("DERAsset", stored.status),
        of("DERAsset", denied.status),
    ) == ["InProgress", "InProgress", "Current", "Failed"]
