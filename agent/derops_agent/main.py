"""``derops-agent`` and its commands: read arguments and settings, then start."""

import argparse
import asyncio
import gc
import logging
import sys
from pathlib import Path
from typing import Any

from derops.command_line import Parser
from derops.errors import DeviceError, SchemaTooNewError, SettingError
from derops.observability import configure_logging
from derops.settings import refuse_to_start
from derops_agent.clock import SystemClock
from derops_agent.drivers.findings import UNUSABLE, Findings
from derops_agent.host import Host
from derops_agent.settings import load


def main() -> None:
    """Run until SIGTERM, or probe a device."""
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.command == "probe":
        sys.exit(_probe(arguments))
    if arguments.config is None:
        parser.error("the following arguments are required: --config")
    try:
        settings = load(arguments.config)
        configure_logging(settings.log_level)
        gc.freeze()  # a full collection stops everything; this leaves out what is imported
        asyncio.run(Host(settings, SystemClock()).run())
    except SettingError as error:
        refuse_to_start(error)
    except ExceptionGroup as group:
        wrong, _ = group.split((SettingError, SchemaTooNewError))
        if wrong is None:
            raise
        refuse_to_start(_first(wrong))


def make_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="derops-agent",
        description="Host assets, each with its identity, ledger and stream, until SIGTERM.",
        epilog="DEROPS_AGENT_* in the environment goes before the file.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; required to run")
    commands = parser.add_subparsers(dest="command")
    says = "show what a Modbus device offers; writes nothing"
    look = commands.add_parser("probe", help=says, description=f"{says[0].upper()}{says[1:]}.")
    look.add_argument("--host", required=True)
    look.add_argument("--port", type=int, default=502)
    look.add_argument("--unit-id", type=int, default=1)
    look.add_argument("--timeout-seconds", type=float, default=1.0)
    look.add_argument("--base-register", type=int, help="where its SunSpec map begins")
    look.add_argument("--profile", help="file with its registers; without one it is SunSpec")
    look.add_argument("--output", choices=("text", "json"), default="text")
    return parser


def _probe(arguments: argparse.Namespace) -> int:
    """Show what a device offers; return the exit code, see ``Findings``."""
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # the driver tells its errors, once
    options = {
        "host": arguments.host,
        "port": arguments.port,
        "unitId": arguments.unit_id,
        "timeoutSeconds": arguments.timeout_seconds,
    }
    try:
        found = asyncio.run(_look(options, arguments.profile, arguments.base_register))
    except SettingError as error:
        refuse_to_start(error)
    except DeviceError as error:
        print(f"derops-agent probe: {error}", file=sys.stderr)  # noqa: T201  # what a person reads
        return UNUSABLE
    print(found.as_json() if arguments.output == "json" else found.as_text())  # noqa: T201
    return found.exit_code


async def _look(
    options: dict[str, Any], profile: str | None, base_register: int | None
) -> Findings:
    if profile is not None:
        from derops_agent.drivers.modbus import parse_options as parse_modbus
        from derops_agent.drivers.modbus.probing import probe as probe_by_profile

        return await probe_by_profile(*parse_modbus({**options, "profile": profile}))
    from derops_agent.drivers.sunspec import parse_options
    from derops_agent.drivers.sunspec.probing import probe

    return await probe(parse_options({**options, "baseRegister": base_register}))


def _first(group: BaseException) -> SettingError | SchemaTooNewError:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    if not isinstance(group, SettingError | SchemaTooNewError):
        raise group
    return group
