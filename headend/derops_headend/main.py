"""``derops-headend gateway`` and ``derops-headend writer``: composition and nothing else."""

import argparse
import asyncio
import signal
import sqlite3
import time
from contextlib import ExitStack

from derops.errors import SchemaTooNewError, SettingError
from derops.observing import OpsServer, Readiness, configure_logging
from derops.settings import load_settings, refuse_to_start


def main() -> None:
    """Run one of the headend's programs until SIGTERM."""
    parser = argparse.ArgumentParser(prog="derops-headend", description=__doc__)
    parser.add_argument("program", choices=["gateway", "writer"])
    # Each imports what it needs when it runs: a gateway has no database driver, a writer no gRPC.
    if parser.parse_args().program == "gateway":
        _run_gateway()
    else:
        from derops_headend import writer

        writer.main()


def _run_gateway() -> None:
    try:
        asyncio.run(_serve_gateway())
    except SettingError as error:
        refuse_to_start(error)


async def _serve_gateway() -> None:
    from derops_headend.eventlog.sqlite import SqliteEventLog
    from derops_headend.gateway.desired_store import DesiredStore
    from derops_headend.gateway.server import Credentials, Gateway, GatewayOptions
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
        agent_credentials=Credentials.read(
            "DEROPS_GATEWAY_AGENT_TLS_DIRECTORY",
            settings.agent_tls_directory,
            settings.agent_ca_file,
        ),
        control_listen=settings.control_listen,
        control_credentials=Credentials.read(
            "DEROPS_GATEWAY_CONTROL_TLS_DIRECTORY",
            settings.control_tls_directory,
            settings.control_tls_directory / "ca.crt",
        ),
        heartbeat_seconds=settings.heartbeat_seconds,
        max_agent_connections=settings.max_agent_connections,
    )
    readiness = Readiness()
    with ExitStack() as opened:
        try:
            settings.data_directory.mkdir(parents=True, exist_ok=True)
            log = SqliteEventLog(
                settings.data_directory / "events.db",
                max_bytes=settings.log_max_bytes,
                drop_oldest=settings.log_when_full == "drop-oldest",
            )
            opened.callback(log.close)
            store = DesiredStore(settings.data_directory / "desired.db", time.time_ns() // 1000)
            opened.callback(store.close)
        except (OSError, sqlite3.Error, SchemaTooNewError) as error:
            raise SettingError(
                "DEROPS_GATEWAY_DATA_DIRECTORY", "environment", str(error)
            ) from error
        gateway = Gateway(options, store=store, log=log, readiness=readiness)
        try:
            ops = OpsServer(settings.ops_address, settings.ops_port, readiness, gateway.alive)
        except OSError as error:
            raise SettingError("DEROPS_GATEWAY_OPS_PORT", "environment", str(error)) from error
        await gateway.start()
        ops.start()
        await stopping.wait()
        await gateway.stop()
        ops.stop()
