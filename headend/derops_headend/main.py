"""``derops-headend`` and its programs: composition and nothing else."""

import argparse
import asyncio
import errno
import gc
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from derops.command_line import Parser
from derops.errors import SchemaTooNewError, SettingError
from derops.memory import keep_freed_memory
from derops.observability import OpsServer, Readiness, configure_logging
from derops.settings import load_settings, refuse_to_start

if TYPE_CHECKING:
    from derops_headend.eventlog.ports import EventLog
    from derops_headend.gateway.settings import GatewaySettings

Opened = TypeVar("Opened")
_Doing = Callable[[argparse.Namespace], None]


def main() -> None:
    """Run one of the headend's programs; gateway, writer and API until SIGTERM."""
    arguments = make_parser().parse_args()
    keep_freed_memory()
    arguments.do(arguments)


def make_parser() -> Parser:
    """Return what knows the programs; each sets ``do``, which is given the arguments."""
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
    try:
        asyncio.run(_serve_gateway())
    except SettingError as error:
        refuse_to_start(error)


async def _serve_gateway() -> None:
    from derops_headend.gateway.desired_store import DesiredStore
    from derops_headend.gateway.listener import CredentialFiles
    from derops_headend.gateway.server import Gateway, GatewayOptions
    from derops_headend.gateway.settings import GatewaySettings

    settings = load_settings(GatewaySettings)
    configure_logging(settings.log_level)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    options = GatewayOptions(
        replica=settings.replica,
        trust_domain=settings.trust_domain,
        agent_listen=settings.agent_listen,
        agent_files=CredentialFiles(
            setting="DEROPS_GATEWAY_AGENT_TLS_DIRECTORY",
            directory=settings.agent_tls_directory,
            client_ca=settings.agent_ca_file,
        ),
        control_listen=settings.control_listen,
        control_files=CredentialFiles(
            setting="DEROPS_GATEWAY_CONTROL_TLS_DIRECTORY",
            directory=settings.control_tls_directory,
            client_ca=settings.control_tls_directory / "ca.crt",
        ),
        operator_certificate_file=settings.operator_certificate_file,
        heartbeat_seconds=settings.heartbeat_seconds,
        max_agent_connections=settings.max_agent_connections,
    )
    for files in (options.agent_files, options.control_files):
        files.read()  # what is wrong with them is said before anything else begins
    readiness = Readiness()
    gateway: Gateway | None = None
    async with AsyncExitStack() as opened:
        try:
            ops = OpsServer(
                settings.ops_address,
                settings.ops_port,
                readiness,
                lambda: gateway is None or gateway.alive(),
            )
        except OSError as error:
            raise SettingError("DEROPS_GATEWAY_OPS_PORT", "environment", str(error)) from error
        ops.start()
        opened.callback(ops.stop)
        try:
            path = settings.data_directory / "desired.db"
            store = await _when_there_is_room(
                lambda: DesiredStore(path, time.time_ns() // 1000), readiness, stopping
            )
            if store is None:
                return
            opened.callback(store.close)
            log = await _open_log(settings, opened, readiness, stopping)
        except (OSError, sqlite3.Error, SchemaTooNewError) as error:
            raise SettingError(
                "DEROPS_GATEWAY_DATA_DIRECTORY", "environment", str(error)
            ) from error
        if log is None:
            return
        gateway = Gateway(options, store=store, log=log, readiness=readiness)
        await gateway.start()
        # What is here now stays: to look through it for garbage would make turns of the loop late.
        gc.freeze()
        await stopping.wait()
        await gateway.stop()


async def _open_log(
    settings: "GatewaySettings",
    opened: AsyncExitStack,
    readiness: Readiness,
    stopping: asyncio.Event,
) -> "EventLog | None":
    """Open the event log that the settings name; wait for it. None = stopped meanwhile."""
    from derops_headend.eventlog import jetstream
    from derops_headend.eventlog.engines import SQLITE
    from derops_headend.eventlog.ports import LogMismatchError, LogUnavailableError
    from derops_headend.eventlog.sqlite import SqliteEventLog

    drop_oldest = settings.log_when_full == "drop-oldest"
    if settings.event_log == SQLITE:
        log = await _when_there_is_room(
            lambda: SqliteEventLog(
                settings.data_directory / "events.db",
                max_bytes=settings.log_max_bytes,
                drop_oldest=drop_oldest,
            ),
            readiness,
            stopping,
        )
        if log is not None:
            opened.callback(log.close)
        return log
    where = jetstream.JetStreamSettings(
        url=settings.event_log,
        credentials_file=settings.nats_credentials_file,
        ca_file=settings.nats_ca_file,
    )
    while not stopping.is_set():
        try:
            remote = await jetstream.JetStreamEventLog.open(
                where,
                shards=settings.log_shards,
                max_bytes=settings.log_max_bytes,
                replicas=settings.log_replicas,
                drop_oldest=drop_oldest,
            )
        except LogUnavailableError as error:
            readiness.waiting("event log", str(error))
            await _pause(stopping)
        except (LogMismatchError, SchemaTooNewError) as error:
            raise SettingError("DEROPS_GATEWAY_EVENT_LOG", "environment", str(error)) from error
        else:
            readiness.found("event log")
            opened.push_async_callback(remote.close)
            return remote
    return None


async def _when_there_is_room(
    open_file: Callable[[], Opened], readiness: Readiness, stopping: asyncio.Event
) -> Opened | None:
    """Open a file; wait while its disk is full. None = stopped meanwhile."""
    from derops_headend.gateway import metrics

    while not stopping.is_set():
        try:
            found = open_file()
        except (OSError, sqlite3.Error) as error:
            if not _is_full(error):
                raise
            readiness.waiting("data directory", f"{error}; free space on it")
            metrics.LOG_FAILING.set(1)
            await _pause(stopping)
        else:
            readiness.found("data directory")
            metrics.LOG_FAILING.set(0)
            return found
    return None


def _is_full(error: OSError | sqlite3.Error) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(error, "sqlite_errorcode", None)  # only errors of SQLite itself have one
    # The index of the write-ahead log grows by its own call, with its own error.
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


async def _pause(stopping: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), random.uniform(0.5, 2))
