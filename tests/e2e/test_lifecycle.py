"""The life of a dispatch on the real stack: what status says is what the device did."""

from itertools import pairwise

from tests.e2e.acting import Pilot, conditions, instant, parse
from tests.waiting import eventually


def test_a_dispatch_completes_and_status_tells_what_the_device_did(pilot: Pilot) -> None:
    pilot.battery()
    starved = pilot.starved()

    pilot.dispatch("peak")
    active = pilot.wait_for_phase("peak", "Active")
    done = pilot.wait_for_phase("peak", "Complete")

    assert conditions(active)["Applied"] == "True"
    held = conditions(done)
    assert (held["Delivered"], held["Accepted"], held["Applied"]) == ("True", "True", "True")
    assert (held["Reverted"], held["Succeeded"], held["Ready"]) == ("True", "True", "True")
    timeline, execution = done["timeline"], done["execution"]
    assert parse(timeline["appliedAt"]) < parse(timeline["endedAt"])
    assert parse(timeline["endedAt"]) <= parse(timeline["revertedAt"])
    assert execution["requested"] == {"mode": "ActivePower", "watts": 5000}
    assert execution["applied"] == {"mode": "ActivePower", "watts": 5000}
    assert pilot.powers_written() == [5000, 0]
    assert abs(execution["activeSeconds"] - 5) <= 1 + starved.seconds()


def test_a_dispatch_costs_at_most_eight_status_writes(pilot: Pilot) -> None:
    pilot.battery()

    with pilot.watching("counted") as states:
        pilot.dispatch("counted")
        pilot.wait_for_phase("counted", "Complete")

    statuses = [state["status"] for state in states]
    writes = sum(before != after for before, after in pairwise(statuses))
    assert 1 <= writes <= 8
    phases = [status["phase"] for status in statuses]
    order = ["Submitted", "Sent", "Acked", "Active", "Complete"]
    assert phases == sorted(phases, key=order.index)


def test_telemetry_and_history_reach_the_database(pilot: Pilot) -> None:
    asset = pilot.battery()
    pilot.dispatch("stored")
    status = pilot.wait_for_phase("stored", "Complete")

    telemetry = eventually(
        lambda: pilot.rows(
            "select count(*), max(active_power_watts) from telemetry join asset using (asset_id) "
            "where uid::text = %s and ts > %s::timestamptz having max(active_power_watts) > 4500",
            asset["metadata"]["uid"],
            status["timeline"]["appliedAt"],
        ),
        "telemetry of the setpoint",
    )
    phases = eventually(
        lambda: (
            {
                row[0]
                for row in pilot.rows(
                    "select phase from dispatch_event where dispatch_uid::text = %s",
                    pilot.get("dispatch", "stored")["metadata"]["uid"],
                )
            }
            >= {"Submitted", "Acked", "Active", "Complete"}
        ),
        "the history",
    )

    assert telemetry[0][0] > 0
    assert phases


def test_over_the_limit_is_rejected_with_value_limit_and_unit(pilot: Pilot) -> None:
    pilot.battery()

    pilot.dispatch("too-much", setpoint={"mode": "ActivePower", "activePowerWatts": 9000})
    status = pilot.wait_for_phase("too-much", "Rejected")

    assert status["reason"] == "LimitExceeded"
    assert "9000 W" in status["message"]
    assert "8000 W" in status["message"]
    assert conditions(status)["Stalled"] == "True"
    assert 9000 not in pilot.powers_written()


def test_what_the_asset_clamps_is_held_back_and_says_so(pilot: Pilot) -> None:
    pilot.battery(limits={"maxInjectionWatts": 8000, "onExceed": "Clamp"})

    pilot.dispatch("too-much", setpoint={"mode": "ActivePower", "activePowerWatts": 9000})
    status = pilot.wait_for_phase("too-much", "Complete")

    assert conditions(status)["Degraded"] == "True"
    assert status["execution"]["clampedBy"] == "AssetLimits"
    assert status["execution"]["requested"]["watts"] == 9000
    assert status["execution"]["applied"]["watts"] == 8000
    assert pilot.powers_written() == [8000, 0]


def test_a_mode_the_asset_lacks_is_rejected(pilot: Pilot) -> None:
    pilot.battery(
        "roof",
        type="Solar",
        ratings={"maxInjectionWatts": 5000, "maxAbsorptionWatts": 0},
        limits={},
        fallback={},
    )

    pilot.dispatch("wrong-mode", asset="roof")

    assert pilot.wait_for_phase("wrong-mode", "Rejected")["reason"] == "ModeNotSupported"


def test_an_overlong_window_is_rejected(pilot: Pilot) -> None:
    pilot.battery()

    pilot.dispatch("overlong", durationSeconds=7200)
    status = pilot.wait_for_phase("overlong", "Rejected")

    assert status["reason"] == "InvalidSchedule"
    assert "3600 s" in status["message"]


def test_the_manifests_may_arrive_in_any_order(pilot: Pilot) -> None:
    pilot.dispatch("early", startTime=instant(20), durationSeconds=2)
    waiting = eventually(
        lambda: status if (status := pilot.status("early")).get("reason") else None, "a reason"
    )
    pilot.battery()

    assert (waiting["phase"], waiting["reason"]) == ("Submitted", "AssetNotFound")
    pilot.wait_for_phase("early", "Acked", "Active", "Complete")


def test_a_dispatch_for_no_asset_is_rejected_after_its_grace(pilot: Pilot) -> None:
    pilot.dispatch("orphan", asset="nobody", startDeadlineSeconds=2)

    status = pilot.wait_for_phase("orphan", "Rejected", patience_seconds=90)

    assert status["reason"] == "AssetNotFound"
    assert "nobody" in status["message"]


def test_cancel_before_the_start_never_touches_the_device(pilot: Pilot) -> None:
    pilot.battery()
    pilot.dispatch("later", startTime=instant(600))
    pilot.wait_for_phase("later", "Acked")

    pilot.cancel("later")
    status = pilot.wait_for_phase("later", "Cancelled")

    assert status["reason"] == "CancelledBeforeStart"
    assert "appliedAt" not in status["timeline"]
    assert pilot.powers_written() == []


def test_cancel_while_active_reverts_the_device(pilot: Pilot) -> None:
    pilot.battery()
    pilot.dispatch("running", durationSeconds=300)
    pilot.wait_for_phase("running", "Active")

    pilot.cancel("running")
    status = pilot.wait_for_phase("running", "Cancelled")

    assert status["reason"] == "CancelledWhileActive"
    assert conditions(status)["Applied"] == "True"
    assert conditions(status)["Reverted"] == "True"
    assert pilot.powers_written() == [5000, 0]


def test_deleting_an_active_dispatch_reverts_the_device_first(pilot: Pilot) -> None:
    pilot.battery()
    pilot.dispatch("deleted", durationSeconds=300)
    pilot.wait_for_phase("deleted", "Active")

    pilot.stack.kubectl("delete", "dispatch", "deleted", "-n", pilot.namespace, "--timeout=90s")

    assert pilot.powers_written() == [5000, 0]


def test_without_an_agent_a_dispatch_expires(pilot: Pilot) -> None:
    pilot.battery(connected=False)

    pilot.dispatch("unheard", durationSeconds=4, startDeadlineSeconds=2)
    status = pilot.wait_for_phase("unheard", "Expired")

    assert status["reason"] == "AgentOffline"
    assert conditions(status)["Delivered"] == "False"


def test_the_better_primacy_supersedes(pilot: Pilot) -> None:
    pilot.battery()
    pilot.dispatch("market", durationSeconds=300)
    pilot.wait_for_phase("market", "Active")

    pilot.dispatch(
        "grid",
        primacy=10,
        setpoint={"mode": "ActivePower", "activePowerWatts": -2000},
        durationSeconds=4,
    )
    lost = pilot.wait_for_phase("market", "Superseded")
    pilot.wait_for_phase("grid", "Complete")

    assert lost["supersededBy"]
    assert pilot.powers_written() == [5000, -2000, 0]


def test_describe_tells_the_story_in_order(pilot: Pilot) -> None:
    pilot.battery()
    pilot.dispatch("told")
    pilot.dispatch("refused", setpoint={"mode": "ActivePower", "activePowerWatts": 9000})

    pilot.wait_for_phase("told", "Complete")
    pilot.wait_for_phase("refused", "Rejected")

    assert eventually(lambda: story(pilot, "told", "Complete"), "the last Event") == [
        ("Normal", "Submitted", "Validated"),
        ("Normal", "Sent", "DeliveredToSession"),
        ("Normal", "Acked", "Accepted"),
        ("Normal", "Active", "Applied"),
        ("Normal", "Complete", "WindowEnded"),
    ]
    assert eventually(lambda: story(pilot, "refused", "LimitExceeded"), "the refusal") == [
        ("Warning", "LimitExceeded", "Rejected")
    ]
    assert "9000 W" in pilot.stack.kubectl("describe", "dsp/refused", "-n", pilot.namespace)


def story(pilot: Pilot, name: str, last: str) -> list[tuple[str, str, str]]:
    """Return type, reason and first word of each Event as kubectl lists them; [] before last."""
    described = pilot.stack.kubectl("describe", f"dsp/{name}", "-n", pilot.namespace)
    _, _, table = described.partition("Events:")
    rows = [row for row in table.splitlines()[3:] if row.strip()]
    told = []
    for row in rows:
        kind, reason, *_ = row.split()
        note = row.partition("derops.io/operator")[2].strip()
        told.append((kind, reason, note.partition(":")[0]))
    return told if told and told[-1][1] == last else []


def test_kubectl_waits_for_each_condition_and_selects_by_phase(pilot: Pilot) -> None:
    pilot.battery()
    pilot.dispatch("awaited", durationSeconds=20)
    for condition in (
        "Delivered",
        "Accepted",
        "Applied",
        "Verified",
        "Ready",
        "Reverted",
        "Succeeded",
    ):
        pilot.wait_for_condition("dispatch", "awaited", condition, "True")
        if condition == "Applied":
            assert selected(pilot, "status.phase=Active") == ["dispatch.derops.io/awaited"]
            assert selected(pilot, "status.phase=Active,spec.assetRef.name=other") == []
    assert selected(pilot, "status.phase=Complete") == ["dispatch.derops.io/awaited"]


def selected(pilot: Pilot, selector: str) -> list[str]:
    found = pilot.stack.kubectl(
        "get", "dsp", "-n", pilot.namespace, "--field-selector", selector, "-o", "name"
    )
    return found.split()
