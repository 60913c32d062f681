"""The check of roll-ups finds each that is wrong."""

import pytest
from tests.faults.rolled_up import wrong_roll_ups
from tests.headend.storage.conftest import Query, database, database_url, query, store
from tests.headend.storage.storing import MINUTE_US, NOW, Sample, Store, us

__all__ = ["database", "database_url", "query", "store"]
T0_US = us(NOW) // (60 * MINUTE_US) * 60 * MINUTE_US - 60 * MINUTE_US


@pytest.mark.parametrize(
    "spoil",
    [
        "update telemetry_1m set samples = samples + 1 where samples = 12",
        "update telemetry_1m set active_power_watts_mean = 1 where samples = 12",
        "update telemetry_15m set active_power_watts_max = null",
        "update telemetry_15m set energy_injected_watt_hours = energy_injected_watt_hours * 1.01",
        "update telemetry_1m set energy_absorbed_watt_hours = null",
        "delete from telemetry_1m where samples = 12",
        "update telemetry_1m set bucket = bucket - interval '1 hour' where samples = 12",
    ],
)
def test_a_wrong_roll_up_is_found(
    store: Store, database_url: str, query: Query, spoil: str
) -> None:
    store([Sample(T0_US + n * 5_000_000, 1000.0 * (n % 7 - 3)) for n in range(100)])
    store([Sample(T0_US + 40 * MINUTE_US, 3000.0), Sample(T0_US + 41 * MINUTE_US, volts=1.0)])

    assert wrong_roll_ups(database_url) == []

    query(f"with spoilt as ({spoil} returning 1) select count(*) from spoilt")
    assert wrong_roll_ups(database_url) != []
