"""What every program counts."""

from prometheus_client import Counter

LOG_LINES_LEFT_OUT = Counter(
    "derops_log_lines_left_out", "Log lines that were left out because there were too many like it."
)
OPS_CONNECTIONS_CLOSED = Counter(
    "derops_ops_connections_closed",
    "Connections to the ops port that were closed to make room for newer ones.",
)
