"""Dispatches as the operator keeps them."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derops.lifecycle import Phase
from derops.modes import LatePolicy
from derops.resources.dispatches import DispatchSpec
from derops.schedules import SECOND_US, accept_by_us
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import format_instant, parse_instant, to_us
from derops_operator.resources.objects import Meta, digest_of, read_meta, status_of_manifest

CREATOR_ANNOTATION = "derops.io/created-by"
"""On a Dispatch: who ordered it, as admission policies and the API wrote it."""

UNKNOWN_CREATOR = "unknown"
"""Who ordered a Dispatch where nobody can know."""

CREATOR_LIMIT = 512
"""Characters of who ordered a Dispatch; the CRD allows no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A Dispatch. Defaults that depend on other fields are resolved."""

    meta: Meta
    asset_name: str
    mode: str
    watts: int
    start_us: int
    duration_seconds: int
    start_deadline_seconds: int
    randomize_start_seconds: int
    late_policy: str
    report_deadline_seconds: int
    primacy: int
    verify: str
    desired_state: str
    ttl_seconds_after_finished: int | None
    claimed_creator: str
    """Who ordered it, as its annotation says; empty = it has none. Anybody may have written it."""

    status: Mapping[str, Any]

    @property
    def phase(self) -> Phase:
        """The phase its stored status shows."""
        return Phase(self.status.get("phase") or Phase.SUBMITTED)

    @property
    def accept_by_us(self) -> int:
        """The instant after which an agent refuses to accept it."""
        return accept_by_us(self.start_us, self.start_deadline_seconds)

    @property
    def end_us(self) -> int:
        """The planned end without delays."""
        return self.start_us + self.duration_seconds * SECOND_US

    @property
    def latest_end_us(self) -> int:
        """The latest end that its policies allow an agent."""
        late = self.start_deadline_seconds if self.late_policy == LatePolicy.KEEP_DURATION else 0
        return self.end_us + (self.randomize_start_seconds + late) * SECOND_US

    @property
    def in_flight(self) -> bool:
        """Whether a gateway may hold it: from submission to a terminal phase.

        The finalizer alone does not tell: an uninstallation takes it off by force.
        """
        return not self.phase.terminal and (
            self.meta.holds_finalizer
            or self.phase is not Phase.SUBMITTED
            or self.submitted_us is not None
        )

    @property
    def is_unreverted(self) -> bool:
        """Whether its end was told before its device was reverted, and that is still to come."""
        return self.phase.terminal and any(
            (each["type"], each["status"]) == ("Reverted", "False")
            for each in self.status.get("conditions", [])
        )

    @property
    def submitted_us(self) -> int | None:
        """When it was submitted, where its stored status says so."""
        submitted = self.status.get("timeline", {}).get("submittedAt")
        return None if submitted is None else parse_instant(submitted)

    def creator(self, guarded_since_us: int | None) -> str:
        """Return who ordered it: as its status says already, else as far as can be believed.

        Args:
            guarded_since_us: Since when nobody can forge its annotation; None = anybody can.
        """
        if known := self.status.get("createdBy"):
            return str(known)
        if guarded_since_us is None or self.meta.created_us < guarded_since_us:
            return UNKNOWN_CREATOR
        return self.claimed_creator or UNKNOWN_CREATOR

    def is_of_an_earlier(self, asset: Asset) -> bool:
        """Tell whether it was submitted before this asset was re-created under its name."""
        submitted_us = self.submitted_us
        return submitted_us is not None and asset.meta.created_us > submitted_us


def read_dispatch(manifest: Mapping[str, Any]) -> Dispatch:
    """Read a Dispatch. One without a start begins at its creation, which has whole seconds."""
    meta, spec = read_meta(manifest), DispatchSpec.model_validate(manifest["spec"])
    dispatch = Dispatch(
        meta=meta,
        asset_name=spec.asset_ref.name,
        mode=spec.setpoint.mode,
        watts=spec.setpoint.watts,
        start_us=to_us(spec.start_time) if spec.start_time else meta.created_us,
        duration_seconds=spec.duration_seconds,
        start_deadline_seconds=spec.accept_within_seconds,
        randomize_start_seconds=spec.randomize_start_seconds,
        late_policy=spec.late_policy,
        report_deadline_seconds=spec.report_deadline_seconds,
        primacy=spec.primacy,
        verify=spec.verify,
        desired_state=spec.desired_state,
        ttl_seconds_after_finished=spec.ttl_seconds_after_finished,
        claimed_creator=_claimed_creator(manifest["metadata"]),
        status=status_of_manifest(manifest),
    )
    # What others ask of it must not fail in the middle of what they do.
    _ = dispatch.in_flight, dispatch.is_unreverted, dispatch.submitted_us
    _ = format_instant(dispatch.start_us), format_instant(dispatch.latest_end_us)
    return dispatch


def _claimed_creator(metadata: Mapping[str, Any]) -> str:
    """Return what the annotation says; where it could not be shown whole, a digest tells it."""
    return sys.intern(readable(str(metadata.get("annotations", {}).get(CREATOR_ANNOTATION, ""))))


def readable(name: str) -> str:
    """Return a name as it is, if it can be shown; else what can be shown of it, and its digest.

    So two names never become one, and none is longer than ``CREATOR_LIMIT``.
    """
    shown = "".join(each if each.isprintable() else "\ufffd" for each in name[: CREATOR_LIMIT + 1])
    if shown == name and len(name) <= CREATOR_LIMIT:
        return name
    digest = f" (sha256 {digest_of(name)})"
    return shown[: CREATOR_LIMIT - len(digest)] + digest
