"""``derops-headend history``: what became of dispatches, for people and programs.

With ``check``, it tells whether the rows are what the events say.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import psycopg

from derops.instants import format_instant
from derops.settings import load_settings
from derops_headend.programs.writer import WriterSettings
from derops_headend.storage.dispatches import compare, is_filled
from derops_headend.storage.explanations import explain
from derops_headend.storage.history import (
    Dispatched,
    DispatchFilter,
    Step,
    find,
    read_story,
    sum_up,
)

_CONNECT_SECONDS = 5
_NEVER = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "what",
        nargs="?",
        choices=("check",),
        help="compare each dispatch's row with its events; 1 = some differ",
    )
    parser.add_argument("--namespace", help="of the dispatches")
    parser.add_argument("--asset", help="name of the DERAsset")
    parser.add_argument("--dispatch", help="uid or name; one dispatch is told step by step")
    parser.add_argument("--phase", help="such as Failed")
    parser.add_argument("--created-by", help="who ordered them, as Kubernetes names its users")
    parser.add_argument("--since", type=parse_instant, help="first heard of from then on, RFC 3339")
    parser.add_argument("--until", type=parse_instant, help="and before then")
    parser.add_argument("--limit", type=int, default=100, help="at most 1000; the newest first")
    parser.add_argument("--summary", action="store_true", help="count how they ended")
    parser.add_argument("--output", choices=("text", "json"), default="text")


def main(arguments: argparse.Namespace) -> None:
    """Answer from the database that the writer's settings name; exit code 1 where that fails."""
    settings = load_settings(WriterSettings)
    wanted = DispatchFilter(
        namespace=arguments.namespace,
        asset_name=arguments.asset,
        dispatch=arguments.dispatch,
        phase=arguments.phase,
        since=arguments.since,
        until=arguments.until,
        created_by=arguments.created_by,
    )
    try:
        with psycopg.connect(
            settings.database_url.get_secret_value(),
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
        ) as connection:
            connection.read_only = True
            if arguments.what == "check":
                _check(connection, arguments.output)
            else:
                _answer(connection, wanted, arguments)
    except psycopg.Error as error:
        sys.stderr.write(f"no history: {explain(error)}\n")
        sys.exit(1)


def _answer(
    connection: psycopg.Connection, wanted: DispatchFilter, arguments: argparse.Namespace
) -> None:
    say = _say_json if arguments.output == "json" else _say_table
    if arguments.summary:
        say([asdict(each) for each in sum_up(connection, wanted)])
        return
    found = find(connection, wanted, limit=arguments.limit)
    if wanted.dispatch is None or len(found) != 1:
        say([_short(each) if arguments.output == "text" else asdict(each) for each in found])
        return
    _say_story(found[0], read_story(connection, found[0]), arguments.output)


def _say_story(found: Dispatched, story: Sequence[Step], output: str) -> None:
    steps = [asdict(each) for each in story]
    if output == "json":
        _say_json([{**asdict(found), "steps": steps}])
        return
    for name, value in asdict(found).items():
        sys.stdout.write(f"{name:<26}{_word(value)}\n")
    sys.stdout.write("\n")
    _say_table(steps)


def _check(connection: psycopg.Connection, output: str) -> None:
    """Say which rows are not what their events say; exit code 1 where there are any."""
    filled = is_filled(connection)
    count = 0
    place: tuple[str, str] | None = ("", "")
    while place is not None:
        found, place = compare(connection, place)
        for each in found:
            if not (filled or each.kept):
                continue  # its turn has not come
            count += 1
            if output == "json":
                _say_json([asdict(each)])
            else:
                sys.stdout.write(f"{each.dispatch_uid} of {each.subject}: ")
                sys.stdout.write(f"the row has {each.kept}, its events say {each.told}\n")
    if not filled:
        sys.stderr.write("the writer has not given every dispatch its row yet; ask again later\n")
    if count:
        sys.stderr.write(f"{count} dispatches are not what their events say\n")
        sys.exit(1)
    if output == "text":
        sys.stdout.write("each row is what its events say\n")


def _short(each: Dispatched) -> dict[str, Any]:
    return {
        "namespace": each.namespace,
        "dispatch": each.dispatch_name,
        "asset": each.asset_name,
        "phase": each.phase,
        "applied": "unknown" if each.applied is None else each.applied,
        "applied_at": each.applied_at,
        "active_seconds": each.active_seconds,
        "verified": each.verified,
        "reason": each.reason,
        "created_by": each.created_by,
    }


def _say_json(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        sys.stdout.write(json.dumps(row, default=_plain) + "\n")


def _say_table(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        sys.stdout.write("none\n")
        return
    lines = [list(rows[0]), *([_word(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _word(value: Any) -> str:
    if value is None or value == "":
        return _NEVER
    if isinstance(value, datetime):
        return format_instant(value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return what JSON has no type for: an instant, or a number of the database."""
    return _word(value) if isinstance(value, datetime) else float(value)


def parse_instant(text: str) -> datetime:
    """Return the instant of an argument: RFC 3339, with a time zone."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} has no time zone; add Z for UTC")
    return found
