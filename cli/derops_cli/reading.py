"""Manifests of Kubernetes and answers of the API become evidence, once. Pure.

What is not as its kind promises is passed over or is a ``Missing``: whoever may write objects must
not keep others from a diagnosis.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from derops.installation import CONFIG_MAP, KEY
from derops.resources.base import Condition, Section
from derops.resources.derassets import DERAsset, parse_asset
from derops.resources.dispatches import Dispatch, parse_dispatch
from derops_cli.evidence import (
    CertificateSeen,
    ConnectionSeen,
    EventSeen,
    Gap,
    Installation,
    Missing,
    Sample,
    Stored,
    Workload,
)

_MOMENT = TypeAdapter(AwareDatetime)


class _Status(Section):
    observed_at: AwareDatetime
    conditions: tuple[Condition, ...] = ()


def read_asset(manifest: Mapping[str, Any]) -> DERAsset | Missing:
    """Read a DERAsset."""
    try:
        return parse_asset(manifest)
    except ValidationError as error:
        return _unreadable("DERAsset", error)


def read_dispatch(manifest: Mapping[str, Any]) -> Dispatch | Missing:
    """Read a Dispatch."""
    try:
        return parse_dispatch(manifest)
    except ValidationError as error:
        return _unreadable("Dispatch", error)


def read_installation(config_map: Mapping[str, Any]) -> Installation | Missing:
    """Read what the operator says of all."""
    what = f"ConfigMap {CONFIG_MAP}"
    try:
        status = _Status.model_validate_json(config_map["data"][KEY])
    except (KeyError, TypeError):
        return Missing(what, f"it has no {KEY}")
    except ValidationError as error:
        return Missing(what, f"its {KEY} cannot be read: {error.errors()[0]['msg']}")
    return Installation(status.observed_at, status.conditions)


def read_events(items: Iterable[Mapping[str, Any]]) -> tuple[EventSeen, ...]:
    """Read Events of the old API, the newest first."""
    found = [each for each in map(_read_event, items) if each is not None]
    return tuple(sorted(found, key=lambda each: each.at, reverse=True))


def _read_event(item: Mapping[str, Any]) -> EventSeen | None:
    about = item.get("involvedObject") or {}
    series = item.get("series") or {}
    times = (series.get("lastObservedTime"), item.get("eventTime"), item.get("lastTimestamp"))
    at = next((each for each in map(read_moment, times) if each is not None), None)
    if at is None:
        return None
    return EventSeen(
        at=at,
        warning=item.get("type") == "Warning",
        kind=str(about.get("kind", "")),
        name=str(about.get("name", "")),
        namespace=str(about.get("namespace", "")),
        reason=str(item.get("reason", "")),
        note=str(item.get("message", "")),
    )


def read_moment(value: object) -> datetime | None:
    """Read RFC 3339; None = it is none."""
    if not isinstance(value, str):
        return None
    try:
        return _MOMENT.validate_python(value)
    except ValidationError:
        return None


def read_certificate(items: Iterable[Mapping[str, Any]]) -> CertificateSeen | None:
    """Read the first of an asset's Certificates; None = there is none."""
    for item in items:
        conditions = (item.get("status") or {}).get("conditions") or ()
        ready: Mapping[str, Any] = next(
            (each for each in conditions if each.get("type") == "Ready"), {}
        )
        return CertificateSeen(
            name=str(item["metadata"]["name"]),
            ready=str(ready.get("status", "Unknown")),
            reason=str(ready.get("reason", "")),
            message=str(ready.get("message", "")),
        )
    return None


def read_workload(kind: str, item: Mapping[str, Any]) -> Workload:
    """Read a Deployment, a StatefulSet or a Pod."""
    status = item.get("status") or {}
    name = str(item["metadata"]["name"])
    if kind != "Pod":
        return Workload(
            kind=kind,
            name=name,
            wanted=int((item.get("spec") or {}).get("replicas", 1)),
            ready=int(status.get("readyReplicas", 0)),
        )
    containers = status.get("containerStatuses") or []
    return Workload(
        kind=kind,
        name=name,
        wanted=max(1, len(containers)),
        ready=sum(bool(each.get("ready")) for each in containers),
        restarts=sum(int(each.get("restartCount", 0)) for each in containers),
        problem=next(filter(None, map(_problem, containers)), str(status.get("reason", ""))),
    )


def _problem(container: Mapping[str, Any]) -> str:
    """Return why a container is not ready: its words of state, and never those of a program."""
    if container.get("ready"):
        return ""
    name = container.get("name", "")
    waiting = (container.get("state") or {}).get("waiting") or {}
    ended = (container.get("lastState") or {}).get("terminated") or {}
    words = [str(waiting.get("reason", "")), str(ended.get("reason", ""))]
    if ended:
        words.append(f"exit code {ended.get('exitCode')}")
    said = ", ".join(filter(None, words))
    return f"{name}: {said}" if said else f"{name} is not ready"


def read_stored(
    asset: Mapping[str, Any], connections: Mapping[str, Any], gaps: Mapping[str, Any]
) -> Stored:
    """Read what the API answered about an asset, its connections and its gaps."""
    newest = asset.get("newest")
    return Stored(
        answers="database" not in (asset.get("missing") or ()),
        newest=Sample(
            at=_MOMENT.validate_python(newest["at"]),
            age_seconds=float(newest["ageSeconds"]),
            received_at=_MOMENT.validate_python(newest["receivedAt"]),
        )
        if newest
        else None,
        connections=tuple(
            ConnectionSeen(
                at=_MOMENT.validate_python(each["at"]),
                event=str(each["event"]),
                reason=str(each["reason"]),
                message=str(each["message"]),
            )
            for each in connections.get("items", ())
        ),
        gaps=tuple(
            Gap(
                start=_MOMENT.validate_python(each["from"]),
                end=_MOMENT.validate_python(each["to"]),
                samples=int(each["samples"]),
                reason=str(each["reason"]),
            )
            for each in gaps.get("items", ())
        ),
    )


def _unreadable(kind: str, error: ValidationError) -> Missing:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return Missing(kind, f"{place}: {first['msg']}")


def canonical(value: object) -> str:
    """Return JSON for people and programs, in ASCII: it controls no terminal."""
    return json.dumps(value, indent=2) + "\n"
