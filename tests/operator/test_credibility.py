"""Whose word about a Dispatch counts."""

from dataclasses import replace
from typing import Any

import pytest
from tests.operator.making import acked, asset, at, dispatch

from derops.wire.v1 import control_pb2
from derops_operator.reconciling.credibility import distrust
from derops_operator.resources.assets import Asset

ANEW = replace(asset(), meta=replace(asset().meta, uid="uid-anew", created_us=at(50)))


def said(ledger_id: str = "ledger-1", **facts: str) -> control_pb2.AgentReport:
    defaults: dict[str, Any] = {
        "asset_uid": "uid-battery",
        "namespace": "pilot",
        "asset_name": "battery",
    }
    return control_pb2.AgentReport(report=acked(ledger_id=ledger_id), **defaults | facts)


def found(
    message: control_pb2.AgentReport,
    known: Asset | None,
    given_to: str | None = "uid-battery",
    ledger_ids: tuple[str, ...] = (),
) -> str | None:
    subject = dispatch(submitted=True, status={"timeline": {"submittedAt": "2027-01-15T08:00:01Z"}})
    return distrust(message, subject, known, given_to=given_to, ledger_ids=ledger_ids)


@pytest.mark.parametrize("given_to", ["uid-battery", None])
@pytest.mark.parametrize(
    "stranger",
    [
        {"namespace": "other"},
        {"asset_name": "other"},
        {"namespace": "", "asset_name": "battery"},
        {"namespace": "", "asset_name": "", "asset_uid": "uid-other"},
        {"namespace": "", "asset_name": "", "asset_uid": ""},
    ],
)
def test_another_assets_word_does_not_count(stranger: dict[str, str], given_to: str | None) -> None:
    assert found(said(**stranger), asset(), given_to) == "AnotherAsset"


@pytest.mark.parametrize("names", [{}, {"namespace": "", "asset_name": ""}])
@pytest.mark.parametrize("given_to", ["uid-battery", None])
def test_the_assets_own_word_counts_whatever_ledger_it_has(
    names: dict[str, str], given_to: str | None
) -> None:
    assert found(said("ledger-2", **names), asset(), given_to, ("ledger-1",)) is None


def test_what_there_is_no_dispatch_for_is_told_to_nobody() -> None:
    strange = distrust(said(), None, asset(), given_to=None, ledger_ids=())

    assert strange == "UnknownDispatch"


@pytest.mark.parametrize("known", [ANEW, None])
@pytest.mark.parametrize("given_to", ["uid-battery", None])
@pytest.mark.parametrize(
    ("ledger_ids", "ledger_id", "strange"),
    [
        (("ledger-1", "ledger-9"), "ledger-1", None),
        (("ledger-1", "ledger-9"), "ledger-2", "AnotherLedger"),
        ((), "ledger-2", None),
    ],
)
def test_an_asset_created_anew_answers_only_with_the_disk_that_was_given_the_dispatch(
    known: Asset | None,
    given_to: str | None,
    ledger_ids: tuple[str, ...],
    ledger_id: str,
    strange: str | None,
) -> None:
    facts: dict[str, Any] = {"asset_uid": "uid-anew"}

    assert found(said(ledger_id, **facts), known, given_to, ledger_ids) == strange
