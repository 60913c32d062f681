"""No store breaks a promise when the power goes; and a store that does not sync is found out."""

import pytest
from tests.powerloss.crashing import Report, crash, undisturbed
from tests.powerloss.stores import STORES


@pytest.mark.parametrize("store", STORES)
def test_a_store_whose_power_stays_on_keeps_its_promises(store: str) -> None:
    assert undisturbed(store, seed=3) == []


def test_too_little_is_told() -> None:
    enough = Report(
        "outbox", 1, crashes=100, recordings=1, operations=900, lost_something=50, tells=90
    )
    assert enough.shortfalls(100) == []
    for name in ("crashes", "recordings", "operations", "lost_something", "tells"):
        few = Report("outbox", 1)
        for each in ("crashes", "recordings", "operations", "lost_something", "tells"):
            setattr(few, each, 0 if each == name else getattr(enough, each))
        (words,) = few.shortfalls(100)
        assert name in words


@pytest.mark.parametrize("store", STORES)
def test_loss_of_power_breaks_no_promise(store: str) -> None:
    report = crash(store, crashes=80, seed=2)  # finds all that was found once

    assert report.violations == []
    assert report.shortfalls(80) == []


@pytest.mark.parametrize("store", STORES)
def test_a_store_that_does_not_sync_is_found_out(store: str) -> None:
    report = crash(store, crashes=40, seed=1, ignores=lambda path: path.endswith("-wal"))

    assert report.violations
