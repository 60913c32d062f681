"""Orders as callers write them, Dispatches as callers see them. Pure."""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from derops.resources.dispatches import DispatchStatus, ModeName, Setpoint
from derops_headend.api.caller import Caller
from derops_headend.api.models import NAME_PATTERN, Model

LEAST_TTL_SECONDS = 86_400
"""A Dispatch that ended is kept for a day at least: a repeated call finds it."""

CREATED_BY = "derops.io/created-by"
REQUEST_ID = "derops.io/request-id"
REQUEST_SHA256 = "derops.io/request-sha256"
_UNKNOWN = "unknown"
_MOST_WATTS = 10**12
_WEEK_SECONDS = 604_800
_START = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)


def _check_date(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
        moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise PydanticCustomError("date_time", "is no date and time that there is") from error
    return text


Name = Annotated[str, Field(min_length=1, max_length=63, pattern=NAME_PATTERN)]
Watts = Annotated[int, Field(ge=0, le=_MOST_WATTS)]


class NewSetpoint(Model):
    """What the device shall do. Exactly the value that belongs to the mode is given."""

    mode: ModeName
    active_power_watts: int | None = Field(
        default=None,
        ge=-_MOST_WATTS,
        le=_MOST_WATTS,
        description="W; positive = into the grid. With mode ActivePower only.",
    )
    max_generation_watts: Watts | None = Field(
        default=None, description="W, without sign. With mode GenerationLimit only."
    )
    max_load_watts: Watts | None = Field(
        default=None, description="W, without sign. With mode LoadLimit only."
    )


class NewDispatch(Model):
    """An order to one asset of the namespace; names and defaults are those of a Dispatch's spec."""

    name: Name | None = Field(
        default=None, description="Of the Dispatch; by default made of the Idempotency-Key."
    )
    asset: Name = Field(description="Name of a DERAsset of the namespace.")
    setpoint: NewSetpoint
    start_time: (
        Annotated[str, Field(max_length=40, pattern=_START), AfterValidator(_check_date)] | None
    ) = Field(
        default=None,
        description="Start of the window, with a zone; by default now, once for all repetitions.",
        examples=["2026-12-01T18:00:00Z"],
    )
    duration_seconds: int = Field(ge=1, le=_WEEK_SECONDS)
    start_deadline_seconds: int | None = Field(default=None, ge=0, le=_WEEK_SECONDS)
    randomize_start_seconds: int = Field(default=0, ge=0, le=3600)
    late_policy: Literal["KeepEnd", "KeepDuration"] = "KeepEnd"
    report_deadline_seconds: int = Field(default=900, ge=1, le=_WEEK_SECONDS)
    primacy: int = Field(
        default=100, ge=0, le=255, description="The lower number wins; of equals the newer order."
    )
    verify: Literal["Required", "Report"] = "Report"
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=LEAST_TTL_SECONDS,
        le=315_360_000,
        description="Delete it this long after its end, in s; by default it stays.",
    )


class DispatchView(Model):
    """A Dispatch. ``status`` is as the operator last wrote it."""

    namespace: str
    name: str
    uid: str = Field(description="Empty in a dry run: nothing was made.")
    resource_version: str
    created_at: datetime | None = None
    deleted_at: datetime | None = Field(
        default=None, description="When its deletion was asked for; it is still there."
    )
    created_by: str = Field(description="Who ordered it, as Kubernetes names them, or `unknown`.")
    request_id: str | None = Field(
        default=None,
        description="Of the call that made it, for the audit; absent where nobody can know.",
    )
    asset: str = ""
    setpoint: Setpoint | None = None
    start_time: str | None = Field(default=None, description="As it was written, with a zone.")
    duration_seconds: int | None = None
    start_deadline_seconds: int | None = None
    randomize_start_seconds: int | None = None
    late_policy: str | None = None
    report_deadline_seconds: int | None = None
    primacy: int | None = None
    verify: str | None = None
    desired_state: str | None = None
    ttl_seconds_after_finished: int | None = None
    status: DispatchStatus | None = None
    problem: str | None = Field(default=None, description="Why it cannot be read.")


def canonical(order: NewDispatch) -> dict[str, Any]:
    """Return an order as JSON with all defaults; equal orders give equal JSON."""
    return order.model_dump(mode="json", by_alias=True, exclude_none=True)


def sha256_of(value: Any) -> str:
    """Return the SHA-256, hex, of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def name_of(caller: Caller, namespace: str, key: str) -> str:
    """Return the name of the Dispatch that a key makes, for one caller in one namespace."""
    digest = hashlib.sha256(json.dumps([caller.name, namespace, key]).encode()).digest()
    return f"api-{base64.b32encode(digest).decode().lower()[:20]}"


def manifest_of(
    order: NewDispatch, namespace: str, name: str, start: str, annotations: Mapping[str, str]
) -> dict[str, Any]:
    """Return the Dispatch that an order is.

    Args:
        order: The order as it was sent.
        namespace: The namespace of the Dispatch.
        name: The name of the Dispatch.
        start: Start of its window, RFC 3339, whenever it is created.
        annotations: Say who ordered it.
    """
    spec = {
        name: value for name, value in canonical(order).items() if name not in ("name", "asset")
    }
    return {
        "apiVersion": "derops.io/v1alpha1",
        "kind": "Dispatch",
        "metadata": {"namespace": namespace, "name": name, "annotations": dict(annotations)},
        "spec": {**spec, "assetRef": {"name": order.asset}, "startTime": start},
    }


def _created_by(manifest: Mapping[str, Any], annotations: Mapping[str, Any]) -> str:
    """Return who ordered a Dispatch, as the operator says: it knows what may be believed.

    Until the operator has seen the Dispatch, the annotation counts: the Dispatch is new then.
    """
    status = manifest.get("status")
    status = status if isinstance(status, dict) else {}
    looked = status.get("observedGeneration", -1) != -1
    return str(status.get("createdBy") or (not looked and annotations.get(CREATED_BY)) or _UNKNOWN)


def view_of(manifest: Mapping[str, Any]) -> DispatchView:
    """Return a Dispatch as callers see it; ``problem`` says what is not as its kind promises."""
    metadata = manifest.get("metadata") or {}
    annotations = metadata.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    creator = _created_by(manifest, annotations)
    identity: dict[str, Any] = {
        "namespace": str(metadata.get("namespace", "")),
        "name": str(metadata.get("name", "")),
        "uid": str(metadata.get("uid", "")),
        "resource_version": str(metadata.get("resourceVersion", "")),
        "created_by": creator,
        # If anybody could say who ordered it, anybody could say by which call.
        "request_id": (creator != _UNKNOWN and annotations.get(REQUEST_ID)) or None,
    }
    try:
        return DispatchView(**identity, **_order(manifest))
    except ValidationError as error:
        wrong = error.errors(include_input=False, include_context=False)[:5]
        where = ", ".join(".".join(map(str, each["loc"])) for each in wrong)
        return DispatchView(**identity, problem=f"not as its kind promises: {where}"[:200])
    except Exception as error:
        return DispatchView(**identity, problem=f"cannot be read: {type(error).__name__}")


def _order(manifest: Mapping[str, Any]) -> dict[str, Any]:
    metadata, spec = manifest["metadata"], manifest["spec"]
    deleted, created = metadata.get("deletionTimestamp"), metadata.get("creationTimestamp")
    plain = (
        "startTime",
        "durationSeconds",
        "startDeadlineSeconds",
        "randomizeStartSeconds",
        "latePolicy",
        "reportDeadlineSeconds",
        "primacy",
        "verify",
        "desiredState",
        "ttlSecondsAfterFinished",
    )
    return {
        "created_at": datetime.fromisoformat(created) if created else None,
        "deleted_at": datetime.fromisoformat(deleted) if deleted else None,
        "asset": spec["assetRef"]["name"],
        "setpoint": Setpoint.model_validate(spec["setpoint"]),
        "status": DispatchStatus.model_validate(manifest["status"])
        if manifest.get("status")
        else None,
        **{name: spec.get(name) for name in plain},
    }
