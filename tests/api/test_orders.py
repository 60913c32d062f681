"""How a Dispatch is shown to callers."""

from typing import Any

import pytest

from derops_headend.api.orders import DispatchView, view_of

ANNOTATED = {"derops.io/created-by": "cfo", "derops.io/request-id": "7f0e6a5c"}


def shown(annotations: dict[str, str], status: dict[str, Any]) -> DispatchView:
    return view_of(
        {
            "metadata": {
                "namespace": "pilot", "name": "peak", "uid": "u", "resourceVersion": "1",
                "creationTimestamp": "2030-12-01T18:00:00Z", "annotations": annotations,
            },
            "spec": {
                "assetRef": {"name": "battery"}, "durationSeconds": 5,
                "setpoint": {"mode": "CeaseToEnergize"},
            },
            "status": status,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("annotations", "status", "creator"),
    [
        (ANNOTATED, {"observedGeneration": -1}, "cfo"),
        (ANNOTATED, {}, "cfo"),
        ({}, {}, "unknown"),
        (ANNOTATED, {"observedGeneration": 1, "createdBy": "ann"}, "ann"),
        (ANNOTATED, {"observedGeneration": 1, "createdBy": "unknown"}, "unknown"),
        (ANNOTATED, {"observedGeneration": 1}, "unknown"),
    ],
    ids=["just made", "without status", "nobody", "told", "not believed", "ended long ago"],
)
def test_who_ordered_it_is_what_the_operator_says_once_it_looked(
    annotations: dict[str, str], status: dict[str, Any], creator: str
) -> None:
    view = shown(annotations, status)

    assert view.created_by == creator
    assert view.request_id == (None if creator == "unknown" else "7f0e6a5c")
