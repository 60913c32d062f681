"""What the writer counts; only what is committed counts."""

from prometheus_client import Counter, Gauge, Histogram

SAMPLES = Counter("derops_writer_samples", "Rows stored in telemetry.")
MEASUREMENTS = Counter("derops_writer_measurements", "Rows stored in measurement.")
DUPLICATES = Counter("derops_writer_duplicates", "Rows that were stored already, equal in value.")
EVENTS = Counter("derops_writer_dispatch_events", "Transitions of dispatches that were told.")
CONNECTIONS = Counter("derops_writer_connection_events", "Connection events stored.")
GAPS = Counter("derops_writer_telemetry_gaps", "Gaps told by agents.")
QUARANTINED = Counter("derops_writer_quarantined", "Entries quarantined, by reason.", ["reason"])
RECORDS_MISSING = Counter(
    "derops_writer_records_missing", "Records of the log that were gone before they were stored."
)
DISCONNECTS = Counter("derops_writer_database_failures", "Rounds that the database failed.")
ROLL_UPS = Counter(
    "derops_writer_roll_ups", "Roll-ups of a minute of one asset that were made, or made again."
)
PARTITIONS_DROPPED = Counter(
    "derops_writer_partitions_dropped",
    "Partitions or chunks of telemetry, a day each, dropped at the end of their retention.",
)
AUDIT_PARTITIONS_DROPPED = Counter(
    "derops_writer_audit_partitions_dropped",
    "Months of the audit that were dropped at the end of their retention.",
)
ROWS_DELETED = Counter(
    "derops_writer_rows_deleted",
    "Rows of connections, gaps and quarantine that were deleted at the end of their retention.",
)
DISPATCHES_FILLED = Counter(
    "derops_writer_dispatches_filled",
    "Dispatches from before there was a row for each that were looked at, and have one.",
)
PUT_OFF = Counter(
    "derops_writer_maintenance_put_off",
    "Times that roll-ups, partitions or retention failed, mostly in vain for a lock.",
)
ROLL_UP_DELAY_SECONDS = Gauge(
    "derops_writer_roll_up_delay_seconds", "Age of the oldest minute that is to be rolled up."
)
HISTORY_FILLING = Gauge(
    "derops_writer_history_filling",
    "1 while not all dispatches have their row: history is read from the view, which is slow.",
)
COMMITTED = Gauge(
    "derops_writer_committed_offset", "Offset up to which all is in the database.", ["shard"]
)
BACKLOG = Gauge(
    "derops_writer_backlog_records", "Records of the log that wait for the database.", ["shard"]
)
DELAY_SECONDS = Gauge(
    "derops_writer_delay_seconds",
    "Age of the newest entry of the last round when it was stored.",
    ["shard"],
)
BEHIND_SECONDS = Gauge(
    "derops_writer_behind_seconds",
    "Time since all that was in the log was in the database.",
    ["shard"],
)
DATABASE_FAILING = Gauge(
    "derops_writer_database_failing",
    "1 while the database cannot be reached, refuses or fails.",
    ["shard"],
)
LOG_DAMAGED = Gauge(
    "derops_writer_log_damaged", "1 while a record does not match its checksum.", ["shard"]
)
ROUND_SECONDS = Histogram(
    "derops_writer_round_seconds",
    "Seconds of one transaction of the writer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
