"""``python -m tests.stack.parts`` has each real part that tests use at hand.

A part is found on this machine, or installed or built once and kept in the cache. That can take
longer than any test may: whoever runs tests has it done before.
"""

import sys
from collections.abc import Callable

from tests.stack import build, gitops, nats, nginx, prometheus
from tests.stack.postgres import find_installation
from tests.stack.processes import StackError
from tests.stack.timescale import find_timescale

_PARTS: dict[str, Callable[[], object]] = {
    "control plane": build.binaries,
    "Modbus server": lambda: build.program("modbusserver"),
    "kstatus": lambda: build.program("kstatus"),
    "argohealth": lambda: build.program("argohealth"),
    "definitions of Argo CD and Flux": gitops.definitions,
    "definitions of the Gateway API": gitops.gateway_api,
    "nats-server": nats.find_program,
    "nginx": nginx.find_program,
    "promtool": prometheus.find_promtool,
    "PostgreSQL": find_installation,
    "TimescaleDB": find_timescale,
}


def main() -> int:
    """Have all at hand and say where each is; return the exit code."""
    for name, find in _PARTS.items():
        try:
            print(f"{name}: {find()}", flush=True)
        except StackError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
