"""Records of the audit, bounded in bytes whatever was sent. Pure."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from derops.instants import format_instant
from derops_headend.api.audit.refusals import Sum
from derops_headend.api.call import Call
from derops_headend.api.ports import RecordStage

OPENED = "Opened"
"""Stage of the record that a process begins with."""

WITHDRAWN = "Withdrawn"
"""Stage of the record that takes an announcement back."""

MAX_RECORD_BYTES = 32 * 1024
"""The most bytes of one record, with those that the chain adds."""

_MOST_TEXT, _MOST_NAME, _MOST_GROUPS, _MOST_CHANGE = 512, 256, 32, 4096


def announced(call: Call, at: datetime) -> str:
    """Return the record of a change that is about to be made."""
    return encode({"stage": RecordStage.RECEIVED, "at": _instant(at), **_facts(call)})


def withdrawn(call: Call, at: datetime) -> str:
    """Return the record of a change that was announced, and of which nothing was done."""
    return encode({"stage": WITHDRAWN, "at": _instant(at), **_facts(call)})


def completed(call: Call, at: datetime, status: int, reason: str, sent_bytes: int) -> str:
    """Return the record of what was answered."""
    latency = (at - call.received_at).total_seconds() * 1000
    return encode(
        {
            "stage": RecordStage.COMPLETE,
            "at": _instant(at),
            **_facts(call),
            "status": status,
            "reason": _cut(reason),
            "latencyMs": round(max(0.0, latency), 3),
            "bytes": sent_bytes,
        }
    )


def refused(at: datetime, source: str, reason: str, method: str, path: str) -> str:
    """Return the record of a stranger that was refused."""
    return encode(
        {
            "stage": RecordStage.COMPLETE,
            "at": _instant(at),
            "method": _cut(method),
            "path": _path(path),
            "decision": "forbid",
            "reason": _cut(reason),
            "source": _cut(source),
        }
    )


def refused_often(at: datetime, refusals: Sum) -> str:
    """Return the record of calls that were refused, of one source, one caller, or all others."""
    who = refusals.who
    return encode(
        {
            "stage": RecordStage.COMPLETE,
            "at": _instant(at),
            "principal": {"kind": who.kind, "name": _cut(who.name)} if who.name else None,
            "namespace": _cut(who.namespace),
            "decision": "forbid",
            "reason": "RefusedOften",
            "source": _cut(who.source),
            "count": refusals.count,
            "firstAt": _instant(refusals.first),
            "lastAt": _instant(refusals.last),
        }
    )


def opened(at: datetime, facts: Mapping[str, Any]) -> str:
    """Return the record of a process that began to write."""
    return encode({"stage": OPENED, "at": _instant(at), **facts})


def _instant(at: datetime) -> str:
    return format_instant(at, "microseconds")


def encode(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON in ASCII, on one line; empty ones are left out."""
    return json.dumps(
        {name: value for name, value in facts.items() if _says_something(value)},
        separators=(",", ":"),
    )


def _says_something(value: object) -> bool:
    return value is not None and value is not False and value not in ("", {}, [])


def _facts(call: Call) -> dict[str, Any]:
    caller, subject = call.caller, call.subject
    return {
        "requestId": call.request_id,
        "principal": {
            "kind": caller.kind.value,
            "name": _cut(caller.name),
            "uid": _cut(caller.uid),
            "groups": [_cut(group) for group in caller.groups[:_MOST_GROUPS]],
            "tokenId": _cut(caller.token_id),
        },
        "namespace": _cut(subject.namespace),
        "verb": _cut(subject.verb),
        "resource": _cut(subject.resource),
        "name": _cut(subject.name),
        "objectUid": _cut(subject.object_uid),
        "dryRun": subject.dry_run,
        "method": _cut(call.method),
        "path": _path(call.path),
        "decision": _cut(subject.decision),
        "rule": _cut(subject.rule, _MOST_TEXT),
        "source": _cut(call.source),
        "userAgent": _cut(call.user_agent),
        "idempotencyKeySha256": _cut(subject.idempotency_key_sha256),
        "bodySha256": _cut(subject.body_sha256),
        "change": _bounded(subject.change),
    }


def _cut(text: str, most: int = _MOST_NAME) -> str:
    """Return the beginning of a text, of at most so many bytes as JSON in ASCII."""
    text = text[:most]
    if len(text) <= most // 2 and text.isascii() and text.isprintable():
        return text  # as nearly all do; twice as long at most, with what is escaped
    while len(json.dumps(text)) > most + 2:
        text = text[: len(text) * 3 // 4]
    return text


def _path(path: str) -> str:
    """Return a path without its query: values may be anything, also a credential."""
    return _cut(path.partition("?")[0], _MOST_TEXT)


def _bounded(change: Mapping[str, Any]) -> Mapping[str, Any]:
    size = len(json.dumps(change, separators=(",", ":")))
    return change if size <= _MOST_CHANGE else {"omittedBytes": size}
