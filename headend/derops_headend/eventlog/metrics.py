"""What the event log counts."""

from prometheus_client import Counter

LOG_RECORDS_DROPPED = Counter(
    "derops_gateway_log_records_dropped",
    "Records that were dropped at the bound of the log before they were in the database.",
)
"""Acknowledged data that is lost; only where ``LOG_WHEN_FULL`` is ``drop-oldest``."""
