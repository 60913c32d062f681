"""``derops-headend audit``: verify that the audit is as it was recorded, and export all of it."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg

from derops.errors import SettingError
from derops.settings import EXIT_BAD_SETTING, load_settings, refuse_to_start
from derops_headend.programs.history import parse_instant
from derops_headend.programs.writer import WriterSettings
from derops_headend.storage.audit_verification import VerificationCount, export, verify
from derops_headend.storage.chain import Head
from derops_headend.storage.explanations import explain
from derops_headend.storage.url import check_url

_CONNECT_SECONDS = 5
MOST_FINDINGS = 1000
"""The most findings that are printed; the others are counted."""


def add_arguments(verifying: argparse.ArgumentParser, exporting: argparse.ArgumentParser) -> None:
    """Add what the commands take."""
    verifying.add_argument(
        "--heads",
        type=Path,
        metavar="FILE",
        help="lines audit.head that the API printed, kept elsewhere; other lines are passed over",
    )
    exporting.add_argument(
        "--since", type=parse_instant, help="written down from then on, RFC 3339"
    )
    exporting.add_argument("--until", type=parse_instant, help="and before then")


def verify_all(arguments: argparse.Namespace) -> None:
    """Print what differs from what was recorded; exit code 1 = something does, 2 = not known."""
    heads = _read_heads(arguments.heads) if arguments.heads else []
    sys.exit(_ask(lambda connection: _verify(connection, heads)))


def export_all(arguments: argparse.Namespace) -> None:
    """Print records by time, a line each, exactly as they were hashed."""
    sys.exit(_ask(lambda connection: _export(connection, arguments)))


def _ask(work: Callable[[psycopg.Connection], int]) -> int:
    settings = load_settings(WriterSettings)
    try:
        check_url(settings.database_url, "DEROPS_WRITER_DATABASE_URL")
    except SettingError as error:
        refuse_to_start(error)
    try:
        with psycopg.connect(
            settings.database_url.get_secret_value(),
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            client_encoding="utf8",
        ) as connection:
            connection.read_only = True
            return work(connection)
    except psycopg.Error as error:
        sys.stderr.write(f"no audit: {explain(error)}\n")
        return EXIT_BAD_SETTING


def _verify(connection: psycopg.Connection, heads: list[Head]) -> int:
    tally, count = VerificationCount(), 0
    for finding in verify(connection, heads, tally):
        count += 1
        if count <= MOST_FINDINGS:
            sys.stdout.write(f"{finding}\n")
    if count > MOST_FINDINGS:
        sys.stdout.write(f"and {count - MOST_FINDINGS} others\n")
    told = f"and {len(heads)} heads that were told" if heads else "and no heads"
    sys.stdout.write(f"{tally.records} records in {tally.chains} chains, {told}: ")
    sys.stdout.write(f"{count} findings\n" if count else "all is as it was written down\n")
    return 1 if count else 0


def _export(connection: psycopg.Connection, arguments: argparse.Namespace) -> int:
    for body in export(connection, arguments.since, arguments.until):
        sys.stdout.write(f"{body}\n")
    return 0


def _read_heads(path: Path) -> list[Head]:
    """Return the heads of a file, each once; end the program where there is none."""
    found: dict[Head, None] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                head = _head_of(line)
                if head is not None:
                    found[head] = None
    except OSError as error:
        _give_up(f"{path}: {error.strerror}")
    if not found:
        _give_up(f"{path} has no line with chain, seq and hash, as the API prints them")
    return list(found)


def _head_of(line: str) -> Head | None:
    try:
        facts = json.loads(line[line.find("{") :])
        return Head(str(facts["chain"]), int(facts["seq"]), str(facts["hash"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _give_up(why: str) -> None:
    sys.stderr.write(f"cannot verify: {why}\n")
    sys.exit(EXIT_BAD_SETTING)
