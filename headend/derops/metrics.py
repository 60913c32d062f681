"""What every program counts."""

from prometheus_client import Counter, Gauge

from derops.command_line import own_version

BUILD_INFO = Gauge(
    "derops_build_info", "1; its labels say which program this is.", ["program", "version"]
)
READY = Gauge("derops_ready", "1 while the program has all that it waits for, as /readyz says.")
DEGRADED = Gauge(
    "derops_degraded", "1 while a part of the program does not do all it should, as /readyz says."
)
LOG_LINES_LEFT_OUT = Counter(
    "derops_log_lines_left_out",
    "Log lines that were left out because there were too many like it.",
    ["of"],
)
for _of in ("dispatches", "others"):
    LOG_LINES_LEFT_OUT.labels(of=_of)
OPS_CONNECTIONS_CLOSED = Counter(
    "derops_ops_connections_closed",
    "Connections to the ops port that were closed to make room for newer ones.",
)


def note_program(program: str) -> None:
    """Show which program this is, and its version."""
    BUILD_INFO.labels(program, own_version()).set(1)
