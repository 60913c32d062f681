"""What the event log counts."""

from prometheus_client import Counter

LOG_RECORDS_DROPPED = Counter(
    "derops_gateway_log_records_dropped",
    "Records that were dropped at the bound of the log before they were in the database.",
)
"""Acknowledged data that is lost; only where ``LOG_WHEN_FULL`` is ``drop-oldest``."""

LOG_WENT_BACK = Counter(
    "derops_gateway_log_went_back",
    "Times that nats-server had fewer records than it had acknowledged.",
)
"""Acknowledged data that may be lost: the server cut its stream, or an older copy was restored."""
