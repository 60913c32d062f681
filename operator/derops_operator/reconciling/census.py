"""What all assets and dispatches come to, counted; who counts goes through them in any order."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from derops.data_path import CONDITION, AssetFault
from derops.lifecycle import Phase
from derops.schedules import SECOND_US
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import parse_instant

UNJUDGED, OTHER = "Unjudged", "Other"
FLOW_REASONS = ("Flowing", *AssetFault, "ReplicaLost", "NotTold", UNJUDGED, OTHER)
"""Reasons of ``DataFlowing``; of an asset without the condition, and what a newer version says."""

CONDITIONS = ("DeviceSilent", "TelemetryDegraded", "FallbackNotHeld", "Quarantined", "Stalled")
"""Conditions of an asset that ask for a person where they are True."""

IN_FLIGHT = tuple(phase for phase in Phase if not phase.terminal)

_OVERDUE_SHARE = 6
"""cert-manager renews when a third of the life of a certificate is left; half of that is late."""


class Census:
    """One count of all resources."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us
        self.assets: Counter[str] = Counter()
        """By the reason of their condition ``DataFlowing``."""

        self.conditions: Counter[str] = Counter()
        """Assets of which a condition is True."""

        self.first_expiry_us: int | None = None
        """When the first certificate of an asset in service is over; None = none has one."""

        self.overdue = 0
        """Assets in service whose certificate should have been renewed long ago."""

        self.in_flight: Counter[Phase] = Counter()
        self.unreverted = 0
        self.counted = 0
        """Assets and dispatches, of whatever phase."""

    @property
    def first_expiry_seconds(self) -> float:
        """When the first certificate is over, in seconds since 1970; NaN = none is there."""
        return math.nan if self.first_expiry_us is None else self.first_expiry_us / SECOND_US

    def add_asset(self, asset: Asset) -> None:
        """Count an asset."""
        self.counted += 1
        flow = UNJUDGED
        for each in asset.conditions:
            kind = each["type"]
            if kind == CONDITION:
                flow = str(each.get("reason", ""))
            elif kind in CONDITIONS and each["status"] == "True":
                self.conditions[kind] += 1
        self.assets[flow if flow in FLOW_REASONS else OTHER] += 1
        current: Mapping[str, Any] = asset.identity.get("current") or {}
        if current and asset.operating_state == "InService" and not asset.quarantine:
            self._add_certificate(asset, parse_instant(current["notAfter"]))

    def add_dispatch(self, dispatch: Dispatch) -> None:
        """Count a dispatch."""
        self.counted += 1
        if dispatch.in_flight:
            self.in_flight[dispatch.phase] += 1
        elif dispatch.is_unreverted:
            self.unreverted += 1

    def _add_certificate(self, asset: Asset, ends_us: int) -> None:
        if self.first_expiry_us is None or ends_us < self.first_expiry_us:
            self.first_expiry_us = ends_us
        least_us = asset.certificate_duration_seconds * SECOND_US // _OVERDUE_SHARE
        self.overdue += ends_us - self._now_us < least_us
