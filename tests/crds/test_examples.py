"""The manifests in examples/ are taken as they are, and show what they say they show."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.crds.manifests import REPOSITORY, Manifest
from tests.stack.controlplane import ControlPlane

from derops.checks import MODES_BY_TYPE, Envelope, check_dispatch
from derops.lifecycle import Reason
from derops.resources import DERAsset, Dispatch, parse_asset, parse_dispatch

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
APPLIED = {"uid": "", "creationTimestamp": "2030-01-01T00:00:00Z"}


def documents(kind: str) -> dict[str, Manifest]:
    """Return the manifests of a kind by their file and name, as if they had been applied."""
    return {
        f"{file.name}/{document['metadata']['name']}": document
        | {"metadata": document["metadata"] | APPLIED}
        for file in EXAMPLES
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
        if document["kind"] == kind
    }


ASSETS = {asset.metadata.name: asset for asset in map(parse_asset, documents("DERAsset").values())}
DISPATCHES = {name: parse_dispatch(each) for name, each in documents("Dispatch").items()}
REJECTED = "dispatch-rejected.yaml/too-much"


def refusal_of(dispatch: Dispatch) -> Reason | None:
    asset: DERAsset = ASSETS[dispatch.spec.asset_ref.name]
    refusal = check_dispatch(
        mode=dispatch.spec.setpoint.mode,
        watts=dispatch.spec.setpoint.watts,
        duration_seconds=dispatch.spec.duration_seconds,
        envelope=Envelope(
            max_injection_watts=asset.spec.max_injection_watts,
            max_absorption_watts=asset.spec.max_absorption_watts,
            max_dispatch_duration_seconds=asset.spec.limits.max_dispatch_duration_seconds,
            modes=MODES_BY_TYPE[asset.spec.type],
            owner="the asset's limits",
        ),
    )
    return refusal.reason if refusal else None


@pytest.fixture(scope="module")
def applied(kube: ControlPlane) -> Iterator[dict[str, str]]:
    """Apply all examples in the order of their names, as ``kubectl apply -f examples/`` does."""
    yield {file.name: kube.kubectl("apply", "-f", str(file)) for file in EXAMPLES}
    kube.kubectl("delete", "-f", str(EXAMPLES[0].parent), "--wait=false")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_is_taken(applied: dict[str, str], file: Path) -> None:
    lines = applied[file.name].splitlines()

    assert lines
    assert all(line.endswith(" created") for line in lines)


def test_there_is_an_example_of_every_mode() -> None:
    modes = {each.spec.setpoint.mode for each in DISPATCHES.values()}

    assert modes == MODES_BY_TYPE["Battery"]


def test_there_is_an_example_of_every_type_of_asset() -> None:
    assert {each.spec.type for each in ASSETS.values()} == set(MODES_BY_TYPE)


@pytest.mark.parametrize("name", DISPATCHES)
def test_only_the_example_of_a_refusal_is_beyond_its_asset(name: str) -> None:
    expected = Reason.LIMIT_EXCEEDED if name == REJECTED else None

    assert refusal_of(DISPATCHES[name]) == expected


def test_examples_that_run_at_once_do_not_take_each_others_place() -> None:
    competing = [
        (each.spec.asset_ref.name, each.spec.setpoint.mode)
        for name, each in DISPATCHES.items()
        if each.spec.start_time is None and name != REJECTED
    ]

    assert len(competing) == len(set(competing)) == 2
