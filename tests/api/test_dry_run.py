"""What a dry run says, beside what the operator decides on the same facts."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.making import T0, view

from derops.resources.dispatches import DispatchSpec
from derops.schedules import SECOND_US
from derops_headend.api.assets import AssetView, read_asset, view_of
from derops_headend.api.dry_run import Charge, Judgement, KnownFacts, Result, facts_of, judge
from derops_operator.reconciling.dispatches import reconcile_dispatch
from derops_operator.resources.assets import read_asset as read_asset_fact
from derops_operator.resources.dispatches import read_dispatch

NOW = datetime.fromtimestamp(T0 / SECOND_US, UTC)
TYPES = ["Battery", "Solar", "EVCharger", "Generator", "Load"]
MODES = {
    "ActivePower": "activePowerWatts",
    "GenerationLimit": "maxGenerationWatts",
    "LoadLimit": "maxLoadWatts",
    "CeaseToEnergize": None,
}


def metadata(name: str, **others: Any) -> dict[str, Any]:
    return {
        "namespace": "pilot",
        "name": name,
        "uid": f"uid-{name}",
        "generation": 1,
        "resourceVersion": "10",
        "creationTimestamp": NOW.isoformat(),
        **others,
    }


def seen_asset(manifest: dict[str, Any]) -> AssetView:
    return view_of(read_asset(manifest))


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def assets(draw: st.DrawFn) -> dict[str, Any]:
    watts = st.integers(0, 20000)
    limits = {
        "maxInjectionWatts": draw(optional(watts)),
        "maxAbsorptionWatts": draw(optional(watts)),
        "maxDispatchDurationSeconds": draw(optional(st.integers(1, 10000))),
        "minReservePercent": draw(optional(st.integers(0, 100))),
        "onExceed": draw(optional(st.sampled_from(["Reject", "Clamp"]))),
    }
    ratings = {
        "maxInjectionWatts": draw(watts),
        "maxAbsorptionWatts": draw(watts),
        "energyCapacityWattHours": draw(optional(st.integers(0, 20000))),
    }
    offered = draw(optional(st.lists(st.sampled_from(list(MODES)), max_size=4)))
    quarantine = draw(st.booleans())
    status: dict[str, Any] = {"observedGeneration": 1}
    if offered is not None:
        status["capability"] = {"modes": offered}
    if quarantine and draw(st.booleans()):
        status["identity"] = {"quarantine": {"reason": "KeyInUse", "at": NOW.isoformat()}}
    if draw(st.booleans()):
        status["conditions"] = [
            {
                "type": "Connected",
                "status": draw(st.sampled_from(["True", "False", "Unknown"])),
                "reason": "x",
                "message": "",
                "lastTransitionTime": NOW.isoformat(),
            }
        ]
    deleting = draw(st.sampled_from([{}] * 9 + [{"deletionTimestamp": NOW.isoformat()}]))
    state = draw(st.sampled_from(["InService"] * 6 + ["OutOfService", "Quarantined"]))
    return {
        "metadata": metadata("battery", **deleting),
        "spec": {
            "type": draw(st.sampled_from(TYPES)),
            "ratings": {name: value for name, value in ratings.items() if value is not None},
            "limits": {name: value for name, value in limits.items() if value is not None},
            "operatingState": state,
        },
        "status": status,
    }


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    mode = draw(st.sampled_from(list(MODES)))
    field = MODES[mode]
    lowest = -30000 if mode == "ActivePower" else 0
    setpoint = {"mode": mode} | ({field: draw(st.integers(lowest, 30000))} if field else {})
    start = NOW + timedelta(seconds=draw(st.integers(-200, 200)))
    deadline = draw(optional(st.integers(0, 300)))
    return {
        "assetRef": {"name": "battery"},
        "setpoint": setpoint,
        "startTime": start.isoformat(),
        "durationSeconds": draw(st.integers(1, 20000)),
        **({} if deadline is None else {"startDeadlineSeconds": deadline}),
    }


def decide(order: dict[str, Any], asset: dict[str, Any]) -> dict[str, Any]:
    """Return the status that the operator writes of a Dispatch that it sees for the first time."""
    dispatch = read_dispatch({"metadata": metadata("peak"), "spec": order})
    return reconcile_dispatch(dispatch, read_asset_fact(asset), view(), T0).status


def foresee(
    order: dict[str, Any], asset: dict[str, Any] | None, charge: Charge | None = None
) -> Judgement:
    known = seen_asset(asset) if asset is not None else None
    return judge(DispatchSpec.model_validate(order), KnownFacts(known, 0.5, charge, NOW))


@settings(max_examples=500)
@given(order=orders(), asset=assets(), percent=st.none() | st.floats(0, 100))
def test_what_is_refused_here_is_refused_for_real_and_nothing_else(
    order: dict[str, Any], asset: dict[str, Any], percent: float | None
) -> None:
    charge = Charge(percent, NOW) if percent is not None else None
    judgement = foresee(order, asset, charge)
    status = decide(order, asset)

    if judgement.result is Result.REFUSED:
        assert (status["phase"], status["reason"]) == (judgement.phase, judgement.reason)
        assert status["phase"] in ("Rejected", "Expired")
        if status["phase"] == "Rejected":
            assert status["message"] == judgement.message
    else:
        assert (status["phase"], status["reason"]) == ("Submitted", "Validated")


def test_an_order_whose_window_is_over_is_refused_as_expired_like_the_real_one() -> None:
    late = {**ORDER, "startTime": (NOW - timedelta(seconds=61)).isoformat()}
    late["startDeadlineSeconds"] = 60
    too_much = {**late, "setpoint": {"mode": "ActivePower", "activePowerWatts": 20000}}

    for order, phase in ((late, "Expired"), (too_much, "Rejected")):
        judgement, status = foresee(order, BATTERY), decide(order, BATTERY)
        assert judgement.result is Result.REFUSED
        assert (status["phase"], status["reason"]) == (judgement.phase, judgement.reason)
        assert judgement.phase == phase


BATTERY = {
    "metadata": metadata("battery"),
    "spec": {
        "type": "Battery",
        "ratings": {
            "maxInjectionWatts": 10000,
            "maxAbsorptionWatts": 8000,
            "energyCapacityWattHours": 10000,
        },
    },
    "status": {
        "observedGeneration": 1,
        "conditions": [
            {
                "type": "Connected",
                "status": "True",
                "reason": "x",
                "message": "",
                "lastTransitionTime": NOW.isoformat(),
            }
        ],
    },
}
ORDER = {
    "assetRef": {"name": "battery"},
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 10000},
    "startTime": NOW.isoformat(),
    "durationSeconds": 1800,
}


def test_what_nothing_is_against_is_likely() -> None:
    assert foresee(ORDER, BATTERY).result is Result.LIKELY


def test_a_charge_that_may_change_refuses_nothing() -> None:
    judgement = foresee(ORDER, BATTERY, Charge(40.0, NOW))

    assert (judgement.result, judgement.reason) == (Result.UNKNOWN, "InsufficientEnergy")
    assert foresee(ORDER, BATTERY, Charge(60.0, NOW)).result is Result.LIKELY


def test_an_agent_that_is_not_there_refuses_nothing() -> None:
    asset = {**BATTERY, "status": {"observedGeneration": 1}}
    judgement = foresee(ORDER, asset)

    assert (judgement.result, judgement.reason) == (Result.UNKNOWN, "AgentOffline")


def test_of_no_asset_and_of_one_that_cannot_be_read_nothing_is_known() -> None:
    assert foresee(ORDER, None).reason == "AssetNotFound"
    judgement = foresee(ORDER, {**BATTERY, "spec": {"type": "Kettle"}})
    assert judgement.result is Result.UNKNOWN
    assert "spec" in judgement.message or "type" in judgement.message


def test_each_fact_says_how_old_it_is() -> None:
    asset = seen_asset(BATTERY)
    charge = Charge(55.5, NOW - timedelta(seconds=12))
    facts = {each.name: each for each in facts_of(KnownFacts(asset, 0.5, charge, NOW))}

    assert facts["asset.generation"].age_seconds == 0.5
    assert facts["asset.status.observedGeneration"].value == "1"
    assert facts["asset.status.connected"].value == "True"
    assert (facts["stateOfChargePercent"].value, facts["stateOfChargePercent"].age_seconds) == (
        "55.5",
        12,
    )
