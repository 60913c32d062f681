"""What the audit of the API counts."""

from prometheus_client import Counter, Gauge, Histogram

RECORDS = Counter("derops_api_audit_records", "Records that are durable in the replica's file.")
STORED = Counter("derops_api_audit_stored", "Records that went from the file into the database.")
WAITING_BYTES = Gauge(
    "derops_api_audit_file_bytes",
    "Bytes of the replica's file: what the database does not have yet, and some that it has.",
)
DELAY_SECONDS = Gauge(
    "derops_api_audit_delay_seconds",
    "Seconds for which records have been waiting for the database.",
)
NOT_TAKEN = Counter(
    "derops_api_audit_not_taken",
    "Records that could not be written down, by why; their calls were answered 503.",
    ["why"],
)
SUMMED_UP = Counter(
    "derops_api_audit_refusals_summed",
    "Refusals of strangers, and of calls too many, that are counted in one record of many.",
)
DATABASE_FAILURES = Counter(
    "derops_api_audit_database_failures", "Times that the database took no records."
)
CONFLICTS = Counter(
    "derops_api_audit_conflicts",
    "Records in whose place the database has another one, or that it refused.",
)
APPEND_SECONDS = Histogram(
    "derops_api_audit_append_seconds",
    "Seconds until a group of records was durable in the replica's file.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)

# Shown from the start, as it is alarmed of: a first one would not be seen to be an increase.
for _why in ("full", "disk"):
    NOT_TAKEN.labels(_why)
