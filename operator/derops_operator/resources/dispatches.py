"""Dispatches as the operator keeps them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from derops.lifecycle import Phase
from derops.log_fields import dispatch_fields, read_request_id
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

REQUEST_ID_ANNOTATION = "derops.io/request-id"
"""On a Dispatch: which call of the API made it."""

CREATOR_LIMIT = 512
"""Characters of who ordered a Dispatch; the CRD allows no more."""


class DispatchCondition(StrEnum):
    """The conditions of a stored status by which something is decided."""

    DELIVERED = "Delivered"
    ACCEPTED = "Accepted"
    APPLIED = "Applied"
    VERIFIED = "Verified"
    REVERTED = "Reverted"
    SUCCEEDED = "Succeeded"
    DEGRADED = "Degraded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A Dispatch. Defaults that depend on other fields are resolved.

    What decides is asked of fields and properties; ``status`` is for merging.
    """

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

    request_id: str = ""
    """Of the call that ordered it, as its annotation says; empty = none that can be one. A hint."""

    status: Mapping[str, Any]
    phase: Phase = field(init=False)
    """The phase its stored status shows."""

    reason: str = field(init=False)
    """The reason its stored status shows; empty = none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phase", Phase(self.status.get("phase") or Phase.SUBMITTED))
        object.__setattr__(self, "reason", str(self.status.get("reason") or ""))

    @property
    def message(self) -> str:
        """The message its stored status shows; empty = none."""
        return str(self.status.get("message", ""))

    @property
    def conditions(self) -> Sequence[Mapping[str, Any]]:
        """The conditions of its stored status."""
        conditions: Sequence[Mapping[str, Any]] = self.status.get("conditions", [])
        return conditions

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """The transitions that its stored status keeps, the oldest first."""
        history: Sequence[Mapping[str, Any]] = self.status.get("history", [])
        return history

    @property
    def late_report(self) -> Mapping[str, Any] | None:
        """What its agent said after its end, as its stored status has it; None = nothing."""
        late: Mapping[str, Any] | None = self.status.get("lateReport")
        return late

    @property
    def log_fields(self) -> dict[str, str]:
        """What a line about it says of it."""
        return dispatch_fields(
            namespace=self.meta.namespace,
            asset=self.asset_name,
            dispatch=self.meta.name,
            uid=self.meta.uid,
            request_id=self.request_id,
        )

    def status_of(self, condition: DispatchCondition) -> str:
        """Return True, False or Unknown, as the stored status has it; Unknown where it has none."""
        return next(
            (str(each["status"]) for each in self.conditions if each["type"] == condition),
            "Unknown",
        )

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
            (each["type"], each["status"]) == (DispatchCondition.REVERTED, "False")
            for each in self.conditions
        )

    @property
    def submitted_us(self) -> int | None:
        """When it was submitted, where its stored status says so."""
        submitted = self.status.get("timeline", {}).get("submittedAt")
        return None if submitted is None else parse_instant(submitted)

    @property
    def planned_end_us(self) -> int | None:
        """The planned end that its stored status shows; None = it shows none."""
        planned = self.status.get("timeline", {}).get("plannedEnd")
        return None if planned is None else parse_instant(planned)

    @property
    def completed_us(self) -> int:
        """When it ended, by its stored status; KeyError where that does not say so."""
        return parse_instant(self.status["completionTime"])

    @property
    def created_by(self) -> str:
        """Who ordered it, as its stored status shows; empty = it shows nobody."""
        return str(self.status.get("createdBy") or "")

    def creator(self, guarded_since_us: int | None) -> str:
        """Return who ordered it: as its status says already, else as far as can be believed.

        Args:
            guarded_since_us: Since when nobody can forge its annotation; None = anybody can.
        """
        if self.created_by:
            return self.created_by
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
        request_id=_request_id(manifest["metadata"]),
        status=status_of_manifest(manifest),
    )
    # What others ask of it must not fail in the middle of what they do.
    _ = dispatch.in_flight, dispatch.is_unreverted, dispatch.submitted_us
    _ = format_instant(dispatch.start_us), format_instant(dispatch.latest_end_us)
    return dispatch


def _claimed_creator(metadata: Mapping[str, Any]) -> str:
    """Return what the annotation says; where it could not be shown whole, a digest tells it."""
    return sys.intern(readable(str(metadata.get("annotations", {}).get(CREATOR_ANNOTATION, ""))))


def _request_id(metadata: Mapping[str, Any]) -> str:
    return read_request_id(metadata.get("annotations", {}).get(REQUEST_ID_ANNOTATION))


def readable(name: str) -> str:
    """Return a name as it is, if it can be shown; else what can be shown of it, and its digest.

    So two names never become one, and none is longer than ``CREATOR_LIMIT``.
    """
    shown = "".join(each if each.isprintable() else "\ufffd" for each in name[: CREATOR_LIMIT + 1])
    if shown == name and len(name) <= CREATOR_LIMIT:
        return name
    digest = f" (sha256 {digest_of(name)})"
    return shown[: CREATOR_LIMIT - len(digest)] + digest
