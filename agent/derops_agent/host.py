"""The process: its assets, what they share, and waiting for disk and device."""

import asyncio
import secrets
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
from structlog.contextvars import bind_contextvars

from derops.command_line import own_version
from derops.errors import DeviceError, SettingError
from derops.ids import AssetName
from derops.log_fields import asset_fields
from derops.metrics import note_program
from derops.observability import OpsServer, Readiness
from derops_agent.asset.controller import AssetController
from derops_agent.asset.device import GuardedDevice
from derops_agent.asset.ledger import Ledger
from derops_agent.asset.sampler import sample_for_ever
from derops_agent.clock import Clock
from derops_agent.drivers import open_device
from derops_agent.drivers.options import DriverOptionError
from derops_agent.execution.site import LocalLimits
from derops_agent.link.link import Endpoint, Link
from derops_agent.link.outlet import StreamOutlet
from derops_agent.settings import AgentSettings, AssetSettings
from derops_agent.storage import Runner, Threads
from derops_agent.telemetry.flusher import Flusher
from derops_agent.telemetry.outbox import Outbox
from derops_agent.telemetry.outbox_store import OutboxStore

_DEVICE_RETRY_SECONDS = 5
_DISK_RETRY_SECONDS = 1

_T = TypeVar("_T")


class Host:
    """All assets of one process, and what they share."""

    def __init__(self, settings: AgentSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._readiness = Readiness()
        self._instance_id = secrets.token_hex(8)
        self._version = own_version()
        self._threads = Threads()
        self._log = structlog.get_logger("agent")

    async def run(self) -> None:
        """Serve all assets until SIGTERM or SIGINT; devices keep what they hold then."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        ops = self._start_ops()
        opening: asyncio.Future[Flusher] = loop.create_future()
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._flush_for_ever(opening))]
                running += [
                    tasks.create_task(self._serve(asset, opening))
                    for asset in self._settings.assets
                ]
                self._log.info("agent.started", assets=len(self._settings.assets))
                await stopping.wait()
                for task in running:
                    task.cancel()
            if opening.done():
                await self._flush_last(opening.result())
            self._log.info("agent.stopped")
        finally:
            self._threads.close()
            if opening.done():
                opening.result().store.close()
            if ops is not None:
                ops.stop()

    async def _flush_for_ever(self, opening: asyncio.Future[Flusher]) -> None:
        store = await self._when_there_is_room(
            "outbox",
            self._threads.run_outbox,
            lambda: OutboxStore(
                self._settings.data_directory / "outbox.db",
                max_bytes=self._settings.outbox_max_bytes,
                max_age_seconds=self._settings.outbox_max_age_seconds,
                now_us=lambda: self._clock.now_us() if self._clock.synchronised() else None,
            ),
        )
        flusher = Flusher(store, self._threads, self._readiness)
        opening.set_result(flusher)
        await flusher.run()

    async def _flush_last(self, flusher: Flusher) -> None:
        try:
            await flusher.flush()
        except sqlite3.Error as error:
            self._log.error("outbox.not_flushed", why=str(error))

    async def _serve(self, asset: AssetSettings, opening: asyncio.Future[Flusher]) -> None:
        name = AssetName(asset.namespace, asset.name)
        # Each line of this task, and of those that it begins, says which asset it is of.
        bind_contextvars(**asset_fields(name.namespace, name.name))
        folder = self._settings.data_directory / f"{asset.namespace}_{asset.name}"
        part = f"ledger of {name}"
        device = await self._open_device(asset, folder)
        ledger = await self._when_there_is_room(
            part, self._threads.run_ledger, lambda: Ledger(folder / "ledger.db")
        )
        try:
            outlet = StreamOutlet(name, self._readiness)
            controller = AssetController(
                name,
                device,
                ledger,
                self._clock,
                self._threads.run_ledger,
                outlet=outlet,
                local=LocalLimits(
                    max_injection_watts=asset.limits.max_injection_watts,
                    max_absorption_watts=asset.limits.max_absorption_watts,
                ),
                max_clock_offset_milliseconds=self._settings.max_clock_offset_milliseconds,
                settle_us=round(asset.settle_seconds * 1e6),
            )
            await controller.boot()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(controller.run())
                store = (await asyncio.shield(opening)).store
                outbox = await self._when_there_is_room(
                    f"outbox of {name}", self._threads.run_outbox, lambda: store.open(name, outlet)
                )
                tasks.create_task(sample_for_ever(device, controller, outbox, self._clock))
                link = self._link(asset, controller, device, ledger, outbox, outlet)
                tasks.create_task(link.run())
        finally:
            await device.close()
            ledger.close()

    def _link(
        self,
        asset: AssetSettings,
        controller: AssetController,
        device: GuardedDevice,
        ledger: Ledger,
        outbox: Outbox,
        outlet: StreamOutlet,
    ) -> Link:
        return Link(
            AssetName(asset.namespace, asset.name),
            Endpoint(
                gateways=tuple(self._settings.gateways),
                server_name=self._settings.server_name,
                server_ca_file=self._settings.server_ca_file,
                certificate_directory=asset.certificate_directory,
            ),
            controller=controller,
            device=device,
            ledger=ledger,
            outbox=outbox,
            outlet=outlet,
            clock=self._clock,
            run_ledger=self._threads.run_ledger,
            run_outbox=self._threads.run_outbox,
            instance_id=self._instance_id,
            software_version=self._version,
            readiness=self._readiness,
        )

    async def _when_there_is_room(self, part: str, run: Runner, call: Callable[[], _T]) -> _T:
        """Return what a call that needs the disk returns; wait while the disk takes nothing."""
        while True:
            try:
                result: _T = await run(call)
            except (OSError, sqlite3.OperationalError) as error:
                self._readiness.waiting(part, str(error))
                await asyncio.sleep(_DISK_RETRY_SECONDS)
            else:
                self._readiness.found(part)
                return result

    async def _open_device(self, asset: AssetSettings, folder: Path) -> GuardedDevice:
        part = f"device of {asset.namespace}/{asset.name}"
        await self._when_there_is_room(
            f"folder of {asset.namespace}/{asset.name}",
            self._threads.run_ledger,
            lambda: folder.mkdir(parents=True, exist_ok=True),
        )
        while True:
            try:
                device = await open_device(asset.driver.options(), folder, self._clock)
            except DriverOptionError as error:
                key = f"assets.{asset.name}.driver"
                raise SettingError(key, "--config", " ".join(str(error).split())) from error
            except SettingError:
                raise
            except Exception as error:
                # One device, or a mistake in its driver, must not end the other assets.
                if not isinstance(error, DeviceError):
                    self._log.exception("driver.failed", why=str(error))
                why = str(error) or type(error).__name__
                self._readiness.waiting(
                    part,
                    f"{why}; the agent connects for the asset once its device answers",
                )
                await asyncio.sleep(_DEVICE_RETRY_SECONDS)
                continue
            self._readiness.found(part)
            return GuardedDevice(device)

    def _start_ops(self) -> OpsServer | None:
        if not self._settings.ops_port:
            return None
        note_program("agent")
        try:
            ops = OpsServer(self._settings.ops_address, self._settings.ops_port, self._readiness)
        except OSError as error:
            raise SettingError("opsPort", "--config", str(error)) from error
        ops.start()
        return ops
