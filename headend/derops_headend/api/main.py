"""``derops-headend api``: composition and nothing else."""

import asyncio
import signal
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import Any

import structlog
import uvloop

from derops.errors import SchemaTooNewError, SettingError
from derops.metrics import note_program
from derops.observability import OpsServer, Readiness, configure_logging
from derops.settings import load_settings, refuse_to_start
from derops_headend.api.application import make_application
from derops_headend.api.audit.sink import connect_to
from derops_headend.api.audit.trail import AuditTrail
from derops_headend.api.callers import Callers
from derops_headend.api.callers.kubernetes import KubernetesTokens
from derops_headend.api.callers.static import StaticTokens
from derops_headend.api.connection import read_configuration
from derops_headend.api.database import ReadingDatabase
from derops_headend.api.kube import Kube
from derops_headend.api.outer import Outer
from derops_headend.api.ports import Parts
from derops_headend.api.reviews import Reviews
from derops_headend.api.rights import ReviewedRights
from derops_headend.api.server import Server, ServerCertificate, bind
from derops_headend.api.settings import ApiSettings, check_settings


def main() -> None:
    """Run the API until SIGTERM."""
    settings = load_settings(ApiSettings)
    configure_logging(settings.log_level)
    try:
        check_settings(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings))
    except (SettingError, SchemaTooNewError) as error:
        refuse_to_start(error)


async def _serve(settings: ApiSettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    readiness = Readiness()
    async with AsyncExitStack() as opened:
        certificate = None
        if settings.tls_directory is not None:
            certificate = ServerCertificate(settings.tls_directory, readiness)
        static = StaticTokens(settings.static_tokens_directory, readiness, _now)
        await asyncio.to_thread(static.look)
        bound = bind(settings.listen)
        opened.callback(bound.close)
        _open_ops(settings, readiness, opened)
        reviews = Reviews(await read_configuration(), readiness)
        opened.push_async_callback(reviews.close)
        kube = Kube(await read_configuration(), readiness)
        opened.push_async_callback(kube.close)
        parts = Parts(
            rights=ReviewedRights(reviews),
            audit=await _open_audit(settings, readiness, opened),
            kubernetes=kube,
            database=await opened.enter_async_context(
                ReadingDatabase(settings.database_url.get_secret_value(), readiness)
            ),
            now=_now,
        )
        callers = Callers(KubernetesTokens(reviews, settings.audience), static)
        outer = Outer(
            make_application(parts),
            callers.caller_of,
            parts.audit,
            settings.trusted_proxies,
            _now,
        )
        server = Server(outer, bound, certificate.context if certificate else None)
        follow: list[Coroutine[Any, Any, None]] = [static.follow(), reviews.follow(), kube.run()]
        if certificate is not None:
            follow.append(certificate.follow())
        tasks = [asyncio.create_task(each) for each in follow]
        for task in tasks:
            opened.push_async_callback(_end, task)
        structlog.get_logger("api").info(
            "api.started", port=bound.getsockname()[1], tls=certificate is not None
        )
        await _until(server, stopping, tasks)


async def _open_audit(
    settings: ApiSettings, readiness: Readiness, opened: AsyncExitStack
) -> AuditTrail:
    url = settings.database_url.get_secret_value()
    try:
        audit = AuditTrail.open(
            settings.data_directory,
            replica=settings.replica,
            max_bytes=settings.audit_max_bytes,
            connect=lambda: connect_to(url),
            readiness=readiness,
            now=_now,
        )
    except OSError as error:
        raise SettingError("DEROPS_API_DATA_DIRECTORY", "environment", str(error)) from error
    await audit.start()
    opened.push_async_callback(audit.close)
    return audit


def _open_ops(settings: ApiSettings, readiness: Readiness, opened: AsyncExitStack) -> None:
    note_program("api")
    try:
        ops = OpsServer(settings.ops_address, settings.ops_port, readiness)
    except OSError as error:
        raise SettingError("DEROPS_API_OPS_PORT", "environment", str(error)) from error
    ops.start()
    opened.callback(ops.stop)


async def _until(
    server: Server, stopping: asyncio.Event, needed: Sequence[asyncio.Task[None]]
) -> None:
    """Serve until ``stopping`` is set, or a task ends that the server needs."""
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait((serving, waiting, *needed), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    server.should_exit = True
    await serving
    for task in needed:
        if task.done():
            task.result()  # none ends by itself: its failure ends the program


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _now() -> datetime:
    return datetime.now(UTC)
