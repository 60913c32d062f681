"""No store breaks a promise when the power goes; and a store that does not sync is found out."""

import pytest
from tests.powerloss.crashing import crash
from tests.powerloss.stores import STORES


@pytest.mark.parametrize("store", STORES)
def test_loss_of_power_breaks_no_promise(store: str) -> None:
    report = crash(store, crashes=80, seed=2)  # finds all that was found once

    assert report.violations == []
    assert (report.crashes, report.lost_something > 0) == (80, True)


@pytest.mark.parametrize("store", STORES)
def test_a_store_that_does_not_sync_is_found_out(store: str) -> None:
    report = crash(store, crashes=40, seed=1, ignores=lambda path: path.endswith("-wal"))

    assert report.violations
