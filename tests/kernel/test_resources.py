"""Resources as typed values: what follows from what is written in a manifest."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from derops.lifecycle import Phase
from derops.resources import (
    Condition,
    DERAsset,
    Dispatch,
    parse_asset,
    parse_dispatch,
    set_condition,
)

CREATED = datetime(2030, 12, 1, 17, 0, tzinfo=UTC)
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
            "assetRef": {"name": "battery-7"},
            "setpoint": {"mode": "ActivePower", "activePowerWatts": -5000},
            "durationSeconds": 1800,
            **spec,
        },
    }
    return parse_dispatch(manifest | ({"status": status} if status else {}))


def asset(**spec: Any) -> DERAsset:
    ratings = {
        "maxInjectionWatts": 10000,
        "maxAbsorptionWatts": 8000,
        "energyCapacityWattHours": 20000,
    }
    return parse_asset(
        {"metadata": METADATA, "spec": {"type": "Battery", "ratings": ratings, **spec}}
    )


def test_a_dispatch_without_a_start_begins_at_its_creation() -> None:
    assert dispatch().start == CREATED


def test_a_dispatch_begins_at_its_start_in_whatever_zone_it_is_written() -> None:
    order = dispatch(startTime="2030-12-01T19:00:00+01:00")

    assert order.start == datetime(2030, 12, 1, 18, 0, tzinfo=UTC)
    assert order.end == datetime(2030, 12, 1, 18, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("duration", "deadline", "expected"),
    [(1800, None, 60), (20, None, 10), (1, None, 1), (1800, 300, 300), (1800, 0, 0)],
)
def test_accept_by_is_the_start_plus_the_deadline(
    duration: int, deadline: int | None, expected: int
) -> None:
    given: dict[str, Any] = {} if deadline is None else {"startDeadlineSeconds": deadline}

    order = dispatch(durationSeconds=duration, **given)

    assert order.accept_by - order.start == timedelta(seconds=expected)


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
    assert dispatch(setpoint=setpoint).watts == watts


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

    assert (battery.max_injection_watts, battery.max_absorption_watts) == (10000, 8000)


def test_a_limit_of_zero_allows_nothing() -> None:
    battery = asset(limits={"maxInjectionWatts": 0, "maxAbsorptionWatts": 3000})

    assert (battery.max_injection_watts, battery.max_absorption_watts) == (0, 3000)


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


def ready(status: str, at: datetime = CREATED) -> Condition:
    return Condition(
        type="Ready",
        status=status,  # type: ignore[arg-type]
        reason="Stored",
        message="",
        observed_generation=1,
        last_transition_time=at,
    )


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    later = CREATED + timedelta(hours=1)

    (condition,) = set_condition([ready("True")], "Ready", "True", "Again", "words", 2, later)

    assert condition.last_transition_time == CREATED
    assert (condition.reason, condition.message) == ("Again", "words")
    assert condition.observed_generation == 2


def test_a_condition_takes_the_second_when_its_status_changes() -> None:
    later = CREATED + timedelta(seconds=5, milliseconds=700)

    (condition,) = set_condition([ready("True")], "Ready", "False", "Gone", "", 2, later)

    assert condition.last_transition_time == CREATED + timedelta(seconds=5)


def test_conditions_keep_their_places_and_the_stored_ones_are_not_touched() -> None:
    stored = [ready("True"), ready("True").model_copy(update={"type": "Stalled"})]

    changed = set_condition(stored, "Ready", "False", "Gone", "", 2, CREATED)
    grown = set_condition(changed, "Connected", "Unknown", "NotAsked", "", 2, CREATED)

    assert [each.type for each in grown] == ["Ready", "Stalled", "Connected"]
    assert stored[0].status == "True"
