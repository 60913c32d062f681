"""``derops-headend gateway``: talks to agents and to the operator."""

import asyncio
import errno
import gc
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TypeVar

from derops.errors import SchemaTooNewError, SettingError
from derops.metrics import note_program
from derops.observability import OpsServer, Readiness, configure_logging
from derops.settings import load_settings, refuse_to_start
from derops_headend.eventlog.engines import SQLITE
from derops_headend.eventlog.jetstream import JetStreamEventLog, JetStreamSettings
from derops_headend.eventlog.jetstream_words import JetStreamWords
from derops_headend.eventlog.ports import EventLog, LogMismatchError, LogUnavailableError
from derops_headend.eventlog.sqlite import SqliteEventLog
from derops_headend.eventlog.words import FileWords, WriterWords
from derops_headend.gateway import metrics
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.gateway.listener import CredentialFiles
from derops_headend.gateway.server import Gateway, GatewayOptions
from derops_headend.gateway.settings import GatewaySettings

_T = TypeVar("_T")


def main() -> None:
    """Serve until SIGTERM."""
    try:
        asyncio.run(_serve())
    except SettingError as error:
        refuse_to_start(error)


async def _serve() -> None:
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
        log_shards=1 if settings.event_log == SQLITE else settings.log_shards,
    )
    for files in (options.agent_files, options.control_files):
        files.read()  # a wrong one is reported before anything else begins
    note_program("gateway")
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
        words = _make_words(settings)
        opened.push_async_callback(words.close)
        gateway = Gateway(options, store=store, log=log, words=words, readiness=readiness)
        await gateway.start()
        # Objects of the start stay: looking through them for garbage would delay the event loop.
        gc.freeze()
        await stopping.wait()
        await gateway.stop()


async def _open_log(
    settings: GatewaySettings,
    opened: AsyncExitStack,
    readiness: Readiness,
    stopping: asyncio.Event,
) -> EventLog | None:
    """Open the event log that the settings name; wait for it. None = stopped meanwhile."""
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
    where = _where(settings)
    while not stopping.is_set():
        try:
            remote = await JetStreamEventLog.open(
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


def _make_words(settings: GatewaySettings) -> WriterWords:
    """Return where the writers of the log leave word."""
    if settings.event_log == SQLITE:
        return FileWords(settings.data_directory)
    return JetStreamWords(_where(settings), copies=settings.log_replicas)


def _where(settings: GatewaySettings) -> JetStreamSettings:
    return JetStreamSettings(
        url=settings.event_log,
        credentials_file=settings.nats_credentials_file,
        ca_file=settings.nats_ca_file,
    )


async def _when_there_is_room(
    open_file: Callable[[], _T], readiness: Readiness, stopping: asyncio.Event
) -> _T | None:
    """Open a file; wait while its disk is full. None = stopped meanwhile."""
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
