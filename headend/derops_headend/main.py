"""``derops-headend`` and its programs: composition and nothing else."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from derops.command_line import Parser
from derops.memory import keep_freed_memory

if TYPE_CHECKING:
    pass

Opened = TypeVar("Opened")
_Doing = Callable[[argparse.Namespace], None]


def main() -> None:
    """Run one of the headend's programs; gateway, writer and API until SIGTERM."""
    arguments = make_parser().parse_args()
    keep_freed_memory()
    arguments.do(arguments)


def make_parser() -> Parser:
    """Return the parser of all programs; each sets ``do``, which gets the arguments."""
    parser = Parser(
        prog="derops-headend",
        description="What lies between the operator, the agents and the database.",
        epilog="Settings are environment variables: DEROPS_GATEWAY_* of the gateway, "
        "DEROPS_API_* of the API, DEROPS_WRITER_* of all others.",
    )
    programs = parser.add_subparsers(metavar="PROGRAM", required=True)

    def add(
        name: str, do: _Doing, says: str, to: "argparse._SubParsersAction[Parser]" = programs
    ) -> Parser:
        program = to.add_parser(name, help=says, description=f"{says[0].upper()}{says[1:]}.")
        program.set_defaults(do=do)
        return program

    add("gateway", _run_gateway, "talk to agents and to the operator")
    add("writer", _run_writer, "move the event log into the database")
    add("api", _run_api, "answer to REST what is outside Kubernetes")
    skip = add(
        "skip-record", _skip, "move the writer past a damaged record; its bytes go into quarantine"
    )
    skip.add_argument("--record", type=int, required=True, help="its number in the log")
    skip.add_argument("--shard", type=int, default=0, help="the shard that it is in")
    history = add("history", _tell_history, "say what became of dispatches")
    if sys.argv[1:2] == ["history"]:  # the others need no database driver
        from derops_headend.programs import history as history_program

        history_program.add_arguments(history)
    says = "verify or export the audit of the API"
    audit = programs.add_parser("audit", help=says, description=f"{says.capitalize()}.")
    whats = audit.add_subparsers(metavar="WHAT", required=True)
    verifying = add(
        "verify",
        _verify_audit,
        "say which records were edited, removed or reordered; 1 = some were",
        whats,
    )
    exporting = add("export", _export_audit, "print the records by time, a line each", whats)
    if sys.argv[1:2] == ["audit"]:
        from derops_headend.programs import audit as audit_program

        audit_program.add_arguments(verifying, exporting)
    says = "print what an administrator of the database is asked for"
    database = programs.add_parser("database", help=says, description=f"{says.capitalize()}.")
    roles = add(
        "roles",
        _print_roles,
        "print the SQL that makes the roles of derops, passwords left out",
        database.add_subparsers(metavar="WHAT", required=True),
    )
    roles.add_argument(
        "--check",
        action="store_true",
        help="say what is missing in the database of DEROPS_WRITER_DATABASE_URL; 1 = something is",
    )
    return parser


# Each imports what it needs when it runs: a gateway has no database driver, a writer no gRPC.


def _run_writer(_: argparse.Namespace) -> None:
    from derops_headend.programs import writer

    writer.main()


def _run_api(_: argparse.Namespace) -> None:
    try:
        Path.home()
    except RuntimeError:  # without an account; the client of Kubernetes asks for a home at import
        os.environ["HOME"] = "/"
    from derops_headend.api import main as api

    api.main()


def _skip(arguments: argparse.Namespace) -> None:
    from derops_headend.programs import skip_record

    skip_record.main(arguments.record, arguments.shard)


def _tell_history(arguments: argparse.Namespace) -> None:
    from derops_headend.programs import history as history_program

    history_program.main(arguments)


def _verify_audit(arguments: argparse.Namespace) -> None:
    from derops_headend.programs import audit as audit_program

    audit_program.verify_all(arguments)


def _export_audit(arguments: argparse.Namespace) -> None:
    from derops_headend.programs import audit as audit_program

    audit_program.export_all(arguments)


def _print_roles(arguments: argparse.Namespace) -> None:
    from derops_headend.programs import database

    database.main(check=arguments.check)


def _run_gateway(_: argparse.Namespace) -> None:
    # gRPC itself writes a line for each handshake that fails: any stranger could fill a disk.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from derops_headend.programs import gateway

    gateway.main()
