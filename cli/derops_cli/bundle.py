"""A support bundle: by an allow-list of fields, scrubbed, with a list of what is in it.

No field is taken because it is there: annotations, labels, environment, Secrets and logs are not
read at all. Texts that somebody else wrote are scrubbed on top of that.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from derops.command_line import own_version
from derops.instants import format_instant
from derops_cli.errors import UsageError
from derops_cli.evidence import EventSeen, Installation, Missing, Surroundings
from derops_cli.reading import canonical
from derops_cli.scrubbing import scrub
from derops_cli.words import clean

MOST_OBJECTS = 2000
"""The most objects of a kind in a bundle; the manifest says how many were left out."""

_METADATA: dict[str, Any] = {
    "name": True, "namespace": True, "uid": True, "generation": True,
    "creationTimestamp": True, "deletionTimestamp": True,
}  # fmt: skip
_CONDITIONS: list[Any] = [
    {
        "type": True, "status": True, "reason": True, "message": True,
        "observedGeneration": True, "lastTransitionTime": True,
    }
]  # fmt: skip
_CERTIFICATE = {"serialNumber": True, "notAfter": True, "acceptedUntil": True}
_WATTS = {"mode": True, "activePowerWatts": True, "maxGenerationWatts": True, "maxLoadWatts": True}
_TIMELINE = (
    "submittedAt", "sentAt", "ackedAt", "plannedStart", "plannedEnd", "appliedAt", "verifiedAt",
    "endedAt", "revertedAt", "reportedAt", "clockOffsetMilliseconds",
)  # fmt: skip
_VALUE = {"mode": True, "watts": True}

ASSET: dict[str, Any] = {
    "metadata": _METADATA,
    "spec": {
        "type": True,
        "ratings": {
            "maxInjectionWatts": True, "maxAbsorptionWatts": True, "energyCapacityWattHours": True
        },
        "limits": {
            "maxInjectionWatts": True, "maxAbsorptionWatts": True, "minReservePercent": True,
            "maxDispatchDurationSeconds": True, "maxRampWattsPerSecond": True,
            "minSecondsBetweenWrites": True, "onExceed": True,
        },
        "fallback": {
            "activePowerWatts": True, "maxGenerationWatts": True, "maxLoadWatts": True,
            "onCommsLoss": True, "failsafeAfterSeconds": True, "onRestart": True,
        },
        "identity": {"mode": True, "certificateDurationSeconds": True},
        "telemetry": {"intervalSeconds": True},
        "operatingState": True,
    },
    "status": {
        "observedGeneration": True,
        "activeDispatch": True,
        "lastConnectedTime": True,
        "lastDisconnectedTime": True,
        "capability": {"modes": [True], "driver": True, "firmware": True},
        "identity": {
            "current": _CERTIFICATE, "next": _CERTIFICATE, "previous": _CERTIFICATE,
            "quarantine": {"reason": True, "at": True},
        },
        "conditions": _CONDITIONS,
    },
}  # fmt: skip
"""The fields of a DERAsset that are taken. True = the value, a list = each of its members."""

DISPATCH: dict[str, Any] = {
    "metadata": _METADATA,
    "spec": {
        "assetRef": {"name": True}, "setpoint": _WATTS, "startTime": True,
        "durationSeconds": True, "startDeadlineSeconds": True, "randomizeStartSeconds": True,
        "latePolicy": True, "reportDeadlineSeconds": True, "primacy": True, "verify": True,
        "desiredState": True,
    },
    "status": {
        "phase": True, "reason": True, "message": True, "observedGeneration": True,
        "completionTime": True, "conditions": _CONDITIONS, "supersededBy": True,
        "timeline": dict.fromkeys(_TIMELINE, True),
        "execution": {
            "requested": _VALUE, "applied": _VALUE, "clampedBy": True, "rounding": True,
            "activeSeconds": True, "withinToleranceSeconds": True, "deliveredWattHours": True,
            "interruptions": True, "evidence": True,
        },
        "history": [{"at": True, "phase": True, "reason": True, "message": True, "actor": True}],
    },
}  # fmt: skip
"""The fields of a Dispatch that are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that a bundle is made of."""

    surroundings: Surroundings
    assets: Sequence[Mapping[str, Any]] | Missing
    dispatches: Sequence[Mapping[str, Any]] | Missing
    events: Sequence[EventSeen] | Missing
    diagnosis: Mapping[str, Any]
    kubernetes: str
    """Version of the API server; empty = not known."""


def make_bundle(seen: Seen, now: datetime) -> dict[str, str]:
    """Return the files of a bundle by name."""
    files = {
        "assets.json": canonical(_objects(seen.assets, ASSET)),
        "diagnosis.json": canonical(_scrubbed(dict(seen.diagnosis))),
        "dispatches.json": canonical(_objects(seen.dispatches, DISPATCH)),
        "events.json": canonical(_events(seen.events)),
        "installation.json": canonical(_installation(seen.surroundings.installation)),
        "versions.json": canonical(
            {"plugin": own_version(), "kubernetes": clean(seen.kubernetes, 64)}
        ),
        "workloads.json": canonical(_workloads(seen.surroundings)),
    }
    return files | {"manifest.json": canonical(_manifest(files, seen, now))}


def write_bundle(files: Mapping[str, str], file: Path, now: datetime) -> None:
    """Write the files into a new archive that only its owner may read.

    Raises:
        UsageError: There is a file already, or none can be made there.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"--file: {file} cannot be made: {error.strerror}") from error
    folder = file.name.removesuffix(".tar.gz")
    with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, text in sorted(files.items()):
            content = text.encode()
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(now.timestamp())
            archive.addfile(entry, io.BytesIO(content))


def take(value: object, allowed: Any) -> Any:
    """Return what of a value is allowed, with its texts scrubbed; None = nothing is."""
    if isinstance(allowed, dict):
        if not isinstance(value, Mapping):
            return None
        return {name: take(value[name], below) for name, below in allowed.items() if name in value}
    if isinstance(allowed, list):
        return [take(each, allowed[0]) for each in value] if isinstance(value, list) else None
    return _scrubbed(value) if isinstance(value, str | int | float | bool) else None


def _scrubbed(value: Any) -> Any:
    match value:
        case str():
            return scrub(value)
        case dict():
            return {name: _scrubbed(each) for name, each in value.items()}
        case list() | tuple():
            return [_scrubbed(each) for each in value]
    return value


def _objects(found: Sequence[Mapping[str, Any]] | Missing, allowed: Any) -> Any:
    return (
        _left_out(found)
        if isinstance(found, Missing)
        else [take(each, allowed) for each in found[:MOST_OBJECTS]]
    )


def _events(found: Sequence[EventSeen] | Missing) -> Any:
    if isinstance(found, Missing):
        return _left_out(found)
    return [
        {
            "at": format_instant(each.at),
            "warning": each.warning,
            "kind": each.kind,
            "namespace": each.namespace,
            "name": each.name,
            "reason": scrub(each.reason),
            "note": scrub(each.note),
        }
        for each in found[:MOST_OBJECTS]
    ]


def _installation(found: Installation | Missing) -> Any:
    if isinstance(found, Missing):
        return _left_out(found)
    return {
        "observedAt": format_instant(found.observed_at, "seconds"),
        "conditions": [
            {
                "type": scrub(each.type),
                "status": each.status,
                "reason": scrub(each.reason),
                "message": scrub(each.message),
                "lastTransitionTime": format_instant(each.last_transition_time, "seconds"),
            }
            for each in found.conditions
        ],
    }


def _workloads(seen: Surroundings) -> Any:
    if isinstance(seen.workloads, Missing):
        return _left_out(seen.workloads)
    return [
        {
            "kind": each.kind,
            "name": each.name,
            "wanted": each.wanted,
            "ready": each.ready,
            "restarts": each.restarts,
            "problem": scrub(each.problem),
        }
        for each in seen.workloads
    ]


def _left_out(missing: Missing) -> dict[str, str]:
    return {"missing": scrub(missing.what), "why": scrub(missing.why)}


def _manifest(files: Mapping[str, str], seen: Seen, now: datetime) -> dict[str, Any]:
    found = (seen.surroundings.installation, seen.surroundings.workloads)
    listed = {"assets": seen.assets, "dispatches": seen.dispatches, "events": seen.events}
    missing = [each for each in (*found, *listed.values()) if isinstance(each, Missing)]
    return {
        "madeAt": format_instant(now, "seconds"),
        "files": [
            {
                "name": name,
                "bytes": len(text.encode()),
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
            for name, text in sorted(files.items())
        ],
        "leftOut": {name: max(0, _count(each) - MOST_OBJECTS) for name, each in listed.items()},
        "missing": [_left_out(each) for each in missing],
        "fields": "by an allow-list; texts of others are scrubbed of passwords, tokens and keys",
    }


def _count(found: Sequence[Any] | Missing) -> int:
    return 0 if isinstance(found, Missing) else len(found)


def broken_first(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return assets, those whose data does not flow first: they are kept where many are."""

    def flows(item: Mapping[str, Any]) -> bool:
        conditions = (item.get("status") or {}).get("conditions") or ()
        return not any(
            each.get("type") == "DataFlowing" and each.get("status") == "False"
            for each in conditions
        )

    return sorted(items, key=flows)
