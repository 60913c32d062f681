"""Resources as typed values: what follows from what is written in a manifest."""

from copy import deepcopy
from typing import Any

import pytest
from pydantic import ValidationError
from tests.crds.manifests import BATTERY, DISPATCH

from derops.lifecycle import Phase
from derops.resources import DERAsset, Dispatch, parse_asset, parse_dispatch

METADATA = {
    "namespace": "pilot-north",
    "name": "one",
    "uid": "0b8a3c0e",
    "generation": 1,
    "creationTimestamp": "2030-12-01T17:00:00Z",
}


def dispatch(status: dict[str, Any] | None = None, **spec: Any) -> Dispatch:
    manifest: dict[str, Any] = {
        "metadata": METADATA,
        "spec": {
            **deepcopy(DISPATCH["spec"]),
            "setpoint": {"mode": "ActivePower", "activePowerWatts": -5000},
            **spec,
        },
    }
    return parse_dispatch(manifest | ({"status": status} if status else {}))


def asset(**spec: Any) -> DERAsset:
    return parse_asset({"metadata": METADATA, "spec": {**deepcopy(BATTERY["spec"]), **spec}})


@pytest.mark.parametrize(
    ("duration", "deadline", "expected"),
    [(1800, None, 60), (20, None, 10), (1, None, 1), (1800, 300, 300), (1800, 0, 0)],
)
def test_it_is_to_be_accepted_within_what_is_given_or_half_its_duration(
    duration: int, deadline: int | None, expected: int
) -> None:
    given: dict[str, Any] = {} if deadline is None else {"startDeadlineSeconds": deadline}

    order = dispatch(durationSeconds=duration, **given)

    assert order.spec.accept_within_seconds == expected


@pytest.mark.parametrize(
    ("setpoint", "watts"),
    [
        ({"mode": "ActivePower", "activePowerWatts": -5000}, -5000),
        ({"mode": "ActivePower", "activePowerWatts": 0}, 0),
        ({"mode": "GenerationLimit", "maxGenerationWatts": 3000}, 3000),
        ({"mode": "LoadLimit", "maxLoadWatts": 4200}, 4200),
        ({"mode": "CeaseToEnergize"}, 0),
    ],
)
def test_watts_are_the_value_of_the_mode(setpoint: dict[str, Any], watts: int) -> None:
    assert dispatch(setpoint=setpoint).spec.setpoint.watts == watts


def test_a_dispatch_that_nobody_has_seen_is_submitted_and_not_observed() -> None:
    status = dispatch().status

    assert (status.phase, status.observed_generation) == (Phase.SUBMITTED, -1)


def test_fields_of_a_newer_version_are_ignored() -> None:
    order = dispatch(status={"observedGeneration": 1, "phase": "Acked", "mood": "good"}, tags=["x"])

    assert order.status.phase is Phase.ACKED


def test_a_manifest_without_what_is_required_is_refused_with_the_field() -> None:
    with pytest.raises(ValidationError, match=r"spec\.durationSeconds"):
        dispatch(durationSeconds=None)


def test_an_instant_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        dispatch(startTime="2030-12-01T18:00:00")


def test_a_resource_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        dispatch().spec.duration_seconds = 1


def test_an_absent_limit_is_the_rating() -> None:
    battery = asset()

    assert (battery.spec.max_injection_watts, battery.spec.max_absorption_watts) == (10000, 8000)


def test_a_limit_of_zero_allows_nothing() -> None:
    battery = asset(limits={"maxInjectionWatts": 0, "maxAbsorptionWatts": 3000})

    assert (battery.spec.max_injection_watts, battery.spec.max_absorption_watts) == (0, 3000)


def test_the_hash_of_a_key_keeps_its_spelling() -> None:
    entry = {"serialNumber": "7f", "publicKeySHA256": "ab", "notAfter": "2030-12-01T17:00:00Z"}
    manifest = asset().model_dump(mode="json", by_alias=True)

    known = parse_asset(
        manifest | {"status": {"observedGeneration": 1, "identity": {"current": entry}}}
    )

    assert known.status.identity is not None
    assert known.status.model_dump(mode="json", by_alias=True, exclude_none=True)["identity"] == {
        "current": entry
    }
