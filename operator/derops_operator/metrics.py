"""What the operator counts; label values come from closed sets."""

from prometheus_client import Counter, Gauge, Histogram

from derops.lifecycle import Reason
from derops.transitions import TRANSITIONS

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
STAGE_SECONDS = Histogram(
    "derops_operator_dispatch_stage_seconds",
    "Seconds that a dispatch took for a stage of its way, by the type of its asset",
    ("stage", "type"),
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
LATE_REVERTS = Counter(
    "derops_operator_late_reverts_total",
    "Devices that were reverted more than ten seconds after the promised end of a dispatch",
)
OVERRUN_SECONDS = Counter(
    "derops_operator_overrun_seconds_total",
    "Seconds from the promised ends of dispatches until their devices were reverted",
)
ASSETS = Gauge(
    "derops_operator_assets", "Assets, by the reason of their condition DataFlowing", ("reason",)
)
ASSETS_WITH_CONDITION = Gauge(
    "derops_operator_assets_with_condition",
    "Assets of which a condition that asks for a person is True",
    ("condition",),
)
AGENT_CERTIFICATE_EXPIRY = Gauge(
    "derops_operator_agent_certificate_expiry_timestamp_seconds",
    "When the first certificate of an asset in service is over; NaN = none has one",
)
AGENT_CERTIFICATES_OVERDUE = Gauge(
    "derops_operator_agent_certificates_overdue",
    "Assets in service whose certificate has less than a sixth of its life left",
)
DISPATCHES_IN_FLIGHT = Gauge(
    "derops_operator_dispatches_in_flight",
    "Dispatches that a gateway may hold, by their phase",
    ("phase",),
)
DISPATCHES_UNREVERTED = Gauge(
    "derops_operator_unreverted_dispatches",
    "Dispatches that have ended while their device may still hold their setpoint",
)


def count_ending(phase: str, reason: str) -> None:
    """Count a dispatch that ended; a reason that only a newer agent knows counts as ``Other``."""
    PHASES.labels(phase=phase, reason=reason if reason in set(Reason) else "Other").inc()


def _begin_at_zero() -> None:
    """Show from the start what is alarmed of: a first one would not be seen to be an increase."""
    for each in TRANSITIONS:
        if each.end.terminal:
            for reason in each.reasons:
                PHASES.labels(phase=str(each.end), reason=str(reason))
    STRANGE_REPORTS.labels(reason="AnotherAsset")


_begin_at_zero()
