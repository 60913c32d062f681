"""What the operator counts; label values come from closed sets."""

from prometheus_client import Counter, Gauge, Histogram

from derops.lifecycle import Reason

RECONCILES = Counter(
    "derops_operator_reconciles_total", "Objects looked at, by kind and result", ("kind", "result")
)
RECONCILE_SECONDS = Histogram(
    "derops_operator_reconcile_seconds",
    "Time to look at one object, with its calls to Kubernetes",
    ("kind",),
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0),
)
QUEUE_LENGTH = Gauge("derops_operator_queue_length", "Objects that wait to be looked at")
STATUS_WRITES = Counter(
    "derops_operator_status_writes_total", "Status writes, by kind and result", ("kind", "result")
)
PHASES = Counter(
    "derops_operator_dispatch_phases_total",
    "Dispatches that ended, by phase and reason",
    ("phase", "reason"),
)
EVENTS_DROPPED = Counter(
    "derops_operator_events_dropped_total", "Kubernetes Events that could not be written"
)
RESYNC_TIMESTAMP = Gauge(
    "derops_operator_resync_timestamp_seconds", "When all objects were last listed completely"
)
STRANGE_REPORTS = Counter(
    "derops_operator_strange_reports_total",
    "Reports that count for no Dispatch, by why",
    ("reason",),
)
LEDGERS_FORGOTTEN = Counter(
    "derops_operator_forgotten_ledgers_total",
    "Reports let go of because more than eight ledgers spoke of one dispatch",
)
UNREADABLE = Gauge(
    "derops_operator_unreadable_objects",
    "Objects that cannot be read or worked on, by kind",
    ("kind",),
)
EARLY_ISSUANCES = Counter(
    "derops_operator_early_issuances_total",
    "Certificates of agents that were issued long before the one in use had to be renewed",
)
GATEWAYS_EXPECTED = Gauge(
    "derops_operator_gateways_expected", "Gateway replicas that the configuration resolves to"
)
GATEWAYS_CONNECTED = Gauge("derops_operator_gateways_connected", "Gateway replicas connected")

BACKLOG_BYTES = Gauge(
    "derops_operator_backlog_bytes", "Changes that wait for the slowest gateway replica"
)
BACKLOG_OVERRUNS = Counter(
    "derops_operator_backlog_overruns_total",
    "Streams ended because too much waited for a gateway replica; a snapshot follows",
)
HISTORY_DROPPED = Counter(
    "derops_operator_history_dropped_total",
    "Transitions that are not in the database's history: no gateway was there for too long",
)
TRUST_FAILING = Gauge(
    "derops_operator_trust_failing_namespaces",
    "Namespaces with assets to which the server CA could not be carried",
)
CERTIFICATE_EXPIRY = Gauge(
    "derops_operator_certificate_expiry_timestamp_seconds",
    "When the operator's certificate for the control port is over",
)
AUTHORITY_EXPIRY = Gauge(
    "derops_operator_authority_expiry_timestamp_seconds",
    "When the certificate of an authority is over",
    ("authority",),
)


def count_ending(phase: str, reason: str) -> None:
    """Count a dispatch that ended; a reason that only a newer agent knows counts as ``Other``."""
    PHASES.labels(phase=phase, reason=reason if reason in set(Reason) else "Other").inc()
