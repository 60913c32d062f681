"""The first broken link, by all that can be seen, or cannot."""

from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest
from tests.cli.seeing import (
    CONNECTED,
    DENIED,
    FLOWING,
    NOW,
    OFFLINE,
    PLACE,
    asset,
    condition,
    evidence,
    installation,
    stored,
    surroundings,
)

from derops.data_path import LINK_OF, AssetFault, Link, SeenFault, SharedFault
from derops.installation import LINKS
from derops.resources.derassets import DERAsset
from derops.runbooks import RUNBOOK_OF
from derops_cli.causes import causes_of
from derops_cli.diagnosing import diagnose, diagnose_installation
from derops_cli.diagnosis import FRESH, OPERATOR, TAKING, WAITING, Diagnosis, Standing, Verdict
from derops_cli.evidence import (
    ConnectionSeen,
    EventSeen,
    Evidence,
    Gap,
    Installation,
    Missing,
    Right,
    Stored,
    Workload,
)

CONDITION_OF = {link: kind for kind, link in LINKS.items()}
ORDER = list(Link)
EVERY_FAULT = [*AssetFault, *SharedFault, *SeenFault]


def faulty(fault: AssetFault) -> DERAsset:
    """Return an asset whose data does not flow for a reason."""
    stream = LINK_OF[fault] is Link.STREAM
    told = condition("DataFlowing", "False", fault, f"what {fault} says", 90)
    return asset(told, OFFLINE if stream else CONNECTED)


def shared(*faults: SharedFault, observed_seconds: float = 12) -> Installation:
    said = {str(CONDITION_OF[LINK_OF[fault]]): str(fault) for fault in faults}
    return installation(observed_seconds, **said)


def judge(seen: Evidence) -> Diagnosis:
    return diagnose(seen, NOW, PLACE)


def state(found: Diagnosis, link: str) -> Standing:
    return next(each.standing for each in found.links if each.link == link)


def test_an_asset_that_is_well_flows_by_kubernetes_alone() -> None:
    found = judge(evidence())

    assert found.verdict is Verdict.FLOWS
    assert (found.first_broken, found.reason, found.causes, found.missing) == ("", "", (), ())
    assert [each.link for each in found.links] == [*Link, FRESH]
    assert {each.standing for each in found.links[:-1]} == {Standing.HOLDS}
    assert "--as-service-account" in found.links[-1].why


@pytest.mark.parametrize("fault", AssetFault)
def test_each_fault_of_an_asset_breaks_its_link(fault: AssetFault) -> None:
    found = judge(evidence(faulty(fault)))

    assert found.verdict is Verdict.BROKEN
    assert (found.first_broken, found.reason) == (LINK_OF[fault], fault)
    assert found.message == f"what {fault} says"
    assert found.runbook == RUNBOOK_OF[fault]
    assert [each.link for each in found.links if each.broken] == [LINK_OF[fault]]


@pytest.mark.parametrize("fault", SharedFault)
def test_each_fault_of_all_breaks_its_link(fault: SharedFault) -> None:
    found = judge(evidence(surroundings=surroundings(shared(fault))))
    for_all = diagnose_installation(surroundings(shared(fault)), NOW, PLACE)

    for each in (found, for_all):
        assert (each.verdict, each.first_broken) == (Verdict.BROKEN, LINK_OF[fault])
        assert (each.reason, each.runbook) == (fault, RUNBOOK_OF[fault])


@pytest.mark.parametrize(("own", "common"), list(product(AssetFault, SharedFault)))
def test_of_two_the_first_wins_unless_it_only_waits_for_the_other(
    own: AssetFault, common: SharedFault
) -> None:
    found = judge(evidence(faulty(own), surroundings=surroundings(shared(common))))
    links = LINK_OF[own], LINK_OF[common]

    waits = own in WAITING and links[1] in TAKING
    first = 1 if waits or ORDER.index(links[1]) <= ORDER.index(links[0]) else 0
    assert (found.first_broken, found.reason) == (links[first], (own, common)[first])
    assert any("only waits" in note for note in found.notes) == waits


@pytest.mark.parametrize(
    ("faults", "culprit"),
    [
        ((SharedFault.LOG_FULL, SharedFault.WRITER_SILENT), SharedFault.WRITER_SILENT),
        ((SharedFault.LOG_FULL, SharedFault.DATABASE_FULL), SharedFault.DATABASE_FULL),
        ((SharedFault.WRITER_BEHIND, SharedFault.DATABASE_FULL), SharedFault.DATABASE_FULL),
        ((SharedFault.WRITER_SILENT, SharedFault.DATABASE_FULL), SharedFault.WRITER_SILENT),
        ((SharedFault.LOG_FAILING, SharedFault.DATABASE_FULL), SharedFault.LOG_FAILING),
        ((SharedFault.GATEWAY_LOST, SharedFault.LOG_FULL), SharedFault.GATEWAY_LOST),
        (
            (SharedFault.LOG_FULL, SharedFault.WRITER_BEHIND, SharedFault.DATABASE_REFUSES),
            SharedFault.DATABASE_REFUSES,
        ),
    ],
)
def test_what_piles_up_is_not_the_cause(
    faults: tuple[SharedFault, ...], culprit: SharedFault
) -> None:
    assert diagnose_installation(surroundings(shared(*faults)), NOW, PLACE).reason == culprit


def test_while_the_agent_has_no_stream_nobody_knows_of_its_device() -> None:
    found = judge(evidence(faulty(AssetFault.AGENT_OFFLINE)))

    assert [state(found, link) for link in (Link.DEVICE, Link.SAMPLING, Link.OUTBOX)] == [
        Standing.NOT_LOOKED_AT
    ] * 3
    assert state(found, Link.DATABASE) is Standing.HOLDS


def test_before_the_first_broken_link_all_hold_and_behind_it_the_stream_is_seen() -> None:
    found = judge(evidence(faulty(AssetFault.NO_SAMPLES)))

    assert [each.standing for each in found.links[:4]] == [
        Standing.HOLDS, Standing.BROKEN, Standing.NOT_LOOKED_AT, Standing.HOLDS
    ]  # fmt: skip


@pytest.mark.parametrize("said", [faulty(AssetFault.DEVICE_SILENT), asset(FLOWING, CONNECTED)])
def test_of_a_silent_operator_nothing_counts_that_it_wrote(said: DERAsset) -> None:
    seen = surroundings(shared(SharedFault.DATABASE_FULL, observed_seconds=151))

    found = judge(evidence(said, surroundings=seen))

    assert (found.verdict, found.first_broken) == (Verdict.BROKEN, OPERATOR)
    assert found.reason == SeenFault.OPERATOR_SILENT
    assert "nothing since 2026-12-01T02:57:29Z" in found.message
    assert {each.standing for each in found.links} == {Standing.NOT_LOOKED_AT}
    for_all = diagnose_installation(seen, NOW, PLACE)
    assert for_all.first_broken == OPERATOR


def test_at_the_limit_the_operator_is_heard() -> None:
    seen = surroundings(shared(observed_seconds=150))

    assert judge(evidence(surroundings=seen)).verdict is Verdict.FLOWS


def test_a_certificate_is_over_whoever_is_silent() -> None:
    seen = surroundings(shared(observed_seconds=1000))
    expired = asset(FLOWING, CONNECTED, not_after_seconds=60)

    found = judge(evidence(expired, surroundings=seen))

    assert (found.first_broken, found.reason) == (Link.STREAM, AssetFault.CERTIFICATE_EXPIRED)


def test_a_next_certificate_counts_as_well() -> None:
    renewed = {"serialNumber": "0b", "publicKeySHA256": "00", "notAfter": "2027-01-01T00:00:00Z"}
    old = asset(OFFLINE, not_after_seconds=60)
    assert old.status.identity is not None
    both = asset(
        OFFLINE,
        status={
            "identity": {
                "current": old.status.identity.current.model_dump(by_alias=True)
                if old.status.identity.current
                else None,
                "next": renewed,
            }
        },
    )

    assert judge(evidence(old)).reason == AssetFault.CERTIFICATE_EXPIRED
    assert judge(evidence(both)).reason == AssetFault.AGENT_OFFLINE


def test_the_callers_clock_is_corrected_by_the_api_servers() -> None:
    ahead = surroundings(shared(observed_seconds=12), clock_ahead_seconds=600.0)
    blind = surroundings(shared(observed_seconds=12), clock_ahead_seconds=None)
    later = NOW + timedelta(seconds=600)

    corrected = diagnose(evidence(surroundings=ahead), later, PLACE)

    assert corrected.verdict is Verdict.FLOWS
    assert any("10 min ahead of the API server's" in note for note in corrected.notes)
    assert corrected.operator.findings[0].age_seconds == 12
    assert diagnose(evidence(surroundings=blind), later, PLACE).first_broken == OPERATOR


def test_without_the_right_to_the_config_map_the_asset_is_judged_all_the_same() -> None:
    seen = surroundings(DENIED)

    broken = judge(evidence(faulty(AssetFault.DEVICE_SILENT), surroundings=seen))
    well = judge(evidence(surroundings=seen))
    for_all = diagnose_installation(seen, NOW, PLACE)

    assert (broken.verdict, broken.first_broken) == (Verdict.BROKEN, Link.DEVICE)
    assert well.verdict is Verdict.NOTHING_FOUND
    assert state(well, Link.WRITER) is Standing.NOT_LOOKED_AT
    assert well.missing == (DENIED,)
    assert (for_all.verdict, for_all.missing) == (Verdict.NOT_LOOKED_AT, (DENIED,))


def test_an_operator_without_a_ready_pod_is_the_broken_link() -> None:
    absent = Missing("ConfigMap", "there is none", absent=True)
    pods = (Workload(kind="Deployment", name="derops-operator", wanted=1, ready=0),)
    seen = replace(surroundings(absent), workloads=pods)

    assert judge(evidence(surroundings=seen)).first_broken == OPERATOR
    ready = replace(seen, workloads=(replace(pods[0], ready=1),))
    assert judge(evidence(surroundings=ready)).verdict is Verdict.NOTHING_FOUND


@pytest.mark.parametrize(("age_seconds", "first"), [(90, ""), (91, OPERATOR)])
def test_an_operator_without_a_ready_pod_is_waited_for_less(age_seconds: float, first: str) -> None:
    pods = (Workload(kind="Deployment", name="derops-operator", wanted=1, ready=0),)
    seen = replace(surroundings(shared(observed_seconds=age_seconds)), workloads=pods)

    assert judge(evidence(surroundings=seen)).first_broken == first


def test_a_clock_that_is_a_little_off_changes_nothing() -> None:
    seen = surroundings(shared(observed_seconds=148), clock_ahead_seconds=-4.0)

    found = judge(evidence(surroundings=seen))

    assert (found.verdict, found.notes) == (Verdict.FLOWS, ())


OLDER = {
    "connected": (asset(CONNECTED), "", Standing.NOT_LOOKED_AT, Standing.HOLDS),
    "answers": (
        asset(CONNECTED, condition("DeviceSilent", "False", "Answers")),
        "", Standing.HOLDS, Standing.HOLDS,
    ),
    "silent": (
        asset(CONNECTED, condition("DeviceSilent", "True", "NoAnswer", "no sample")),
        AssetFault.DEVICE_SILENT, Standing.BROKEN, Standing.HOLDS,
    ),
    "offline": (asset(OFFLINE), AssetFault.AGENT_OFFLINE, Standing.NOT_LOOKED_AT, Standing.BROKEN),
    "expired": (
        asset(OFFLINE, not_after_seconds=1), AssetFault.CERTIFICATE_EXPIRED,
        Standing.NOT_LOOKED_AT, Standing.BROKEN,
    ),
    "no certificate": (
        asset(
            OFFLINE, condition("Enrolled", "False", "CertificatePending", "not yet"),
            status={"identity": None},
        ),
        AssetFault.NOT_ENROLLED, Standing.NOT_LOOKED_AT, Standing.BROKEN,
    ),
    "quarantined": (
        asset(OFFLINE, condition("Quarantined", "True", "CloneSuspected", "two processes")),
        AssetFault.QUARANTINED, Standing.NOT_LOOKED_AT, Standing.BROKEN,
    ),
    "replica lost": (
        asset(condition("Connected", "Unknown", "ReplicaLost")),
        "", Standing.NOT_LOOKED_AT, Standing.NOT_LOOKED_AT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("older", OLDER.values(), ids=OLDER)
@pytest.mark.parametrize("word", ["absent", "NotTold", "ReplicaLost"])
def test_where_nobody_says_whether_data_flows_the_older_conditions_decide(
    older: tuple[DERAsset, str, Standing, Standing], word: str
) -> None:
    seen, reason, device, stream = older
    if word != "absent":
        said = asset(condition("DataFlowing", "Unknown", word)).status.conditions
        status = seen.status.model_copy(update={"conditions": (*seen.status.conditions, *said)})
        seen = seen.model_copy(update={"status": status})

    found = judge(evidence(seen))

    assert found.reason == reason
    assert (state(found, Link.DEVICE), state(found, Link.STREAM)) == (device, stream)
    assert found.verdict is (Verdict.BROKEN if reason else Verdict.NOTHING_FOUND)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (asset(FLOWING, OFFLINE), AssetFault.AGENT_OFFLINE),
        (
            asset(FLOWING, CONNECTED, condition("DeviceSilent", "True", "NoAnswer", "no sample")),
            AssetFault.DEVICE_SILENT,
        ),
    ],
)
def test_what_is_told_sooner_than_data_flowing_counts(seen: DERAsset, reason: str) -> None:
    found = judge(evidence(seen))

    assert (found.verdict, found.reason) == (Verdict.BROKEN, reason)


@pytest.mark.parametrize("fault", [AssetFault.AGENT_OFFLINE, AssetFault.CERTIFICATE_EXPIRED])
def test_a_stream_that_is_open_again_is_not_judged_by_what_was_before(fault: AssetFault) -> None:
    told = condition("DataFlowing", "False", fault, "before", 300)

    found = judge(evidence(asset(told, CONNECTED)))

    assert found.verdict is Verdict.NOTHING_FOUND
    assert state(found, Link.STREAM) is Standing.HOLDS


def test_a_reason_of_a_newer_operator_is_told_as_it_is() -> None:
    found = judge(evidence(asset(condition("DataFlowing", "False", "Moonstruck"), CONNECTED)))

    assert (found.verdict, found.first_broken, found.reason) == (Verdict.BROKEN, "", "Moonstruck")
    assert "does not know" in found.message


def test_a_new_row_proves_all_links() -> None:
    offline = faulty(AssetFault.AGENT_OFFLINE)

    found = judge(evidence(offline, stored=stored(3), surroundings=surroundings(DENIED)))

    assert found.verdict is Verdict.FLOWS
    assert {each.standing for each in found.links} == {Standing.HOLDS}
    assert any("AgentOffline" in note for note in found.notes)


def test_a_new_row_proves_it_though_the_operator_is_silent_and_that_is_told() -> None:
    seen = surroundings(shared(observed_seconds=1000))

    found = judge(evidence(stored=stored(3), surroundings=seen))

    assert found.verdict is Verdict.FLOWS
    assert found.operator.broken


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        (
            stored(61),
            SeenFault.NOTHING_STORED,
            "the database has nothing since 2026-12-01T02:58:59Z",
        ),
        (Stored(), SeenFault.NOTHING_STORED, "no sample of the last two days"),
        (stored(7200, 2), SeenFault.OLD_SAMPLES, "what came 2 s ago was measured 2 h ago"),
    ],
)
def test_where_all_seems_to_hold_the_row_has_the_last_word(
    row: Stored, reason: str, words: str
) -> None:
    found = judge(evidence(stored=row))

    assert (found.verdict, found.first_broken, found.reason) == (Verdict.BROKEN, FRESH, reason)
    assert words in found.message


def test_an_old_row_does_not_hide_the_link_that_is_broken() -> None:
    assert judge(evidence(faulty(AssetFault.CLOCK_WRONG), stored=stored(900))).reason == (
        AssetFault.CLOCK_WRONG
    )


@pytest.mark.parametrize(("age_seconds", "verdict"), [(60, Verdict.FLOWS), (61, Verdict.BROKEN)])
def test_how_old_a_row_may_be(age_seconds: float, verdict: Verdict) -> None:
    assert judge(evidence(stored=stored(age_seconds))).verdict is verdict


def test_an_asset_that_was_just_made_may_have_no_row() -> None:
    young = asset(FLOWING, CONNECTED)
    made = young.metadata.model_copy(update={"creation_timestamp": NOW - timedelta(seconds=20)})

    found = judge(evidence(young.model_copy(update={"metadata": made}), stored=Stored()))

    assert found.verdict is Verdict.FLOWS


def test_a_database_that_the_api_does_not_reach_is_told() -> None:
    away = Stored(answers=False)

    unseen = judge(evidence(stored=away, surroundings=surroundings(DENIED)))
    denied = judge(evidence(stored=away))

    assert (unseen.first_broken, unseen.reason) == (
        Link.DATABASE, SharedFault.DATABASE_UNREACHABLE
    )  # fmt: skip
    assert denied.verdict is Verdict.FLOWS
    (database,) = (each for each in denied.links if each.link == Link.DATABASE)
    assert any("does not answer" in each.value for each in database.findings)


def test_what_the_api_refuses_is_a_right_that_is_missing() -> None:
    right = Right("get", "derassets.derops.io/telemetry", "pilot-north")
    refused = Missing("API", f"its caller may not {right}", right)

    found = judge(evidence(stored=refused))

    assert found.verdict is Verdict.FLOWS
    assert found.missing == (refused,)
    assert state(found, FRESH) is Standing.NOT_LOOKED_AT


def test_ends_of_connections_gaps_and_bad_points_are_told_beside() -> None:
    ends = ConnectionSeen(at=NOW, event="Refused", reason="UnknownSerial", message="not known")
    gap = Gap(start=NOW, end=NOW, samples=7, reason="OutboxFull")
    degraded = asset(FLOWING, CONNECTED, condition("TelemetryDegraded", "True", "BadPoints", "soc"))

    found = judge(evidence(degraded, stored=stored(3, connections=(ends,), gaps=(gap,))))

    assert found.verdict is Verdict.FLOWS
    told = " ".join(found.notes)
    assert "UnknownSerial" in told
    assert "7 samples" in told
    assert "single points are bad" in told


def test_the_newest_warnings_of_the_last_hour_are_told() -> None:
    def event(minutes: int, *, warning: bool = True) -> EventSeen:
        at = NOW - timedelta(minutes=minutes)
        return EventSeen(
            at=at, warning=warning, kind="DERAsset", name="battery-7", namespace="pilot-north",
            reason=f"Reason{minutes}", note="words",
        )  # fmt: skip

    seen = (event(1, warning=False), event(2), event(3), event(4), event(5), event(90))

    assert judge(evidence(events=seen)).notes == (
        "Event 2 min ago: Reason2: words",
        "Event 3 min ago: Reason3: words",
        "Event 4 min ago: Reason4: words",
    )


@pytest.mark.parametrize("fault", EVERY_FAULT)
def test_each_fault_has_causes_with_commands_and_a_runbook(fault: AssetFault) -> None:
    place = replace(PLACE, flags=("--context=prod",))

    causes = causes_of(fault, place)

    assert causes
    assert all("{" not in each.command or "jsonpath" in each.command for each in causes)
    assert all(
        each.command.startswith("kubectl --context=prod ") or each.command.endswith("the site")
        for each in causes
    )
    assert RUNBOOK_OF[fault].startswith("docs/")


def test_names_in_commands_are_quoted() -> None:
    place = replace(PLACE, asset="a; reboot")

    assert "'a; reboot'" in causes_of(AssetFault.DEVICE_SILENT, place)[0].command
