"""The operator as a program."""

import asyncio
import sys

import kopf
import structlog

from derops.observing import OpsServer, Readiness, configure_logging
from derops.settings import load_settings
from derops_operator.controller import Controller
from derops_operator.handlers import make_registry, quieten
from derops_operator.kube import Kube
from derops_operator.settings import OperatorSettings
from derops_operator.trust import Expected, TrustCheck

_log = structlog.get_logger("operator")

_DEEPEST = 30_000
"""The API server takes JSON of 10,000 levels, from anybody, in metadata.managedFields for one;
Python's parser would end at 1,000, with all that came in the same list."""


def main() -> None:
    """Run until SIGTERM or SIGINT; whatever dies inside ends the program with exit code 1."""
    sys.setrecursionlimit(_DEEPEST)
    settings = load_settings(OperatorSettings)
    configure_logging(settings.log_level)
    quieten()
    asyncio.run(run(settings))


async def run(settings: OperatorSettings) -> None:
    """Run kopf and the controller side by side; when one ends, so does the other.

    On a signal kopf ends first and then the controller, from kopf's cleanup.
    """
    readiness = Readiness()
    kube = await Kube.connect()
    controller = Controller(settings, kube, readiness)
    ops = OpsServer(
        settings.ops_address, settings.ops_port, readiness, alive=lambda: controller.alive
    )
    ops.start()
    _log.info("operator.started", ops_port=ops.port, gateways=settings.gateways)
    working = asyncio.create_task(controller.run(), name="controller")
    expected = Expected(cert_manager_user=settings.cert_manager_user, namespace=settings.namespace)
    checking = asyncio.create_task(TrustCheck(expected, kube, readiness).run(), name="trust")

    async def stop() -> None:
        working.cancel()
        checking.cancel()
        await asyncio.gather(working, checking, return_exceptions=True)

    watching = asyncio.create_task(
        kopf.operator(
            registry=make_registry(controller.take, controller.drop, controller.loaded.wait, stop),
            clusterwide=True,
            standalone=True,
        ),
        name="kopf",
    )
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done() and not working.cancelled():
            working.result()
        await watching
    finally:
        watching.cancel()
        await stop()
        await asyncio.gather(watching, return_exceptions=True)
        await kube.close()
        ops.stop()
        _log.info("operator.stopped")
