"""``derops-operator`` and its commands: composition and nothing else."""

import argparse
import asyncio
import os
import socket
import sys
from pathlib import Path

import structlog

from derops.command_line import Parser
from derops.errors import SettingError
from derops.metrics import note_program
from derops.observability import OpsServer, Readiness, configure_logging
from derops.settings import load_settings, refuse_to_start
from derops_operator import uninstall
from derops_operator.settings import OperatorSettings

_log = structlog.get_logger("operator")

_DEEPEST = 30_000
"""The API server takes JSON of 10,000 levels, from anybody, in metadata.managedFields for one;
Python's parser would end at 1,000, with all that came in the same list."""


def main() -> None:
    """Do what the command says; without one, run the operator."""
    arguments = make_parser().parse_args()
    _have_a_home()
    arguments.do(arguments)


def make_parser() -> Parser:
    """Return what knows the commands; each sets ``do``, which is given the arguments."""
    parser = Parser(
        prog="derops-operator",
        description="Reconcile DERAssets and Dispatches of a cluster, until SIGTERM.",
        epilog="The settings are environment variables, DEROPS_OPERATOR_*.",
    )
    parser.set_defaults(do=_run_operator)
    commands = parser.add_subparsers(metavar="COMMAND")
    what = "end all dispatches, stop the operator, take its finalizers off all objects"
    removal = commands.add_parser("uninstall", help=what, description=uninstall.__doc__)
    uninstall.add_arguments(removal)
    removal.set_defaults(do=_uninstall)
    return parser


def _uninstall(arguments: argparse.Namespace) -> None:
    sys.setrecursionlimit(_DEEPEST)
    sys.exit(uninstall.main(arguments))


def _run_operator(_: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT; whatever dies inside ends the program with exit code 1."""
    from derops_operator.cluster.watching import quieten

    sys.setrecursionlimit(_DEEPEST)
    settings = load_settings(OperatorSettings)
    configure_logging(settings.log_level)
    quieten()
    try:
        asyncio.run(run(settings))
    except SettingError as error:
        refuse_to_start(error)


def _have_a_home() -> None:
    """Let those without an account run this: the client of Kubernetes asks for a home at import."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


async def run(settings: OperatorSettings) -> None:
    """Run kopf and the controller side by side; when one ends, so does the other.

    On a signal kopf ends first and then the controller, from kopf's cleanup.

    Raises:
        SettingError: It cannot be run as it was started.
    """
    import kopf

    from derops_operator.cluster.client import Kube
    from derops_operator.cluster.watching import make_registry
    from derops_operator.controller import Controller
    from derops_operator.trust.cert_manager import Expected, TrustCheck

    note_program("operator")
    readiness = Readiness()
    kube = await Kube.connect()
    controller = Controller(settings, kube, readiness)
    core = controller.core
    try:
        ops = OpsServer(
            settings.ops_address, settings.ops_port, readiness, alive=lambda: controller.alive
        )
    except OSError as error:
        await kube.close()
        raise SettingError("DEROPS_OPERATOR_OPS_PORT", "environment", str(error)) from error
    ops.start()
    _log.info("operator.started", ops_port=ops.port, gateways=settings.gateways)
    working = asyncio.create_task(controller.run(), name="controller")
    expected = Expected(cert_manager_user=settings.cert_manager_user, namespace=settings.namespace)
    check = TrustCheck(expected, kube, readiness, controller.renew)
    checking = asyncio.create_task(check.run(), name="trust")

    async def stop() -> None:
        working.cancel()
        checking.cancel()
        await asyncio.gather(working, checking, return_exceptions=True)

    watching = asyncio.create_task(
        kopf.operator(
            registry=make_registry(core.take, core.drop, controller.loaded.wait, stop),
            clusterwide=True,
            standalone=True,
            # Of its own, or kopf looks for the account that we run as: a pod has none.
            identity=f"derops-operator@{socket.gethostname()}",  # type: ignore[arg-type]  # a str
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
