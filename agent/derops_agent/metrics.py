"""The agent's metrics. They have no asset labels, as five hundred assets share a process."""

from prometheus_client import Counter, Gauge, Histogram

from derops.lifecycle import Reason

CONNECTED = Gauge("derops_agent_connected_assets", "Assets with a complete snapshot and a stream")
CONNECTIONS = Counter(
    "derops_agent_stream_ends_total", "Streams that ended, by the reason", ["reason"]
)
CERTIFICATE_EXPIRY = Gauge(
    "derops_agent_certificate_expiry_timestamp_seconds",
    "When the first certificate of the assets here is over",
)
_MOST_REASONS = 50
_reasons: set[str] = set()


_ends: dict[str, float] = {}


def note_certificate_end(asset: str, at_seconds: float) -> None:
    """Note when the certificate of an asset is over; the metric shows the first of all."""
    _ends[asset] = at_seconds
    CERTIFICATE_EXPIRY.set(min(_ends.values()))


def count_end(reason: str) -> None:
    """Count the end of a stream; reasons of gateways beyond the first fifty count as Other."""
    if len(_reasons) < _MOST_REASONS:
        _reasons.add(reason[:40])
    CONNECTIONS.labels(reason[:40] if reason[:40] in _reasons else "Other").inc()


TRANSITIONS = Counter(
    "derops_agent_dispatch_transitions_total", "Transitions of dispatches", ["phase", "reason"]
)


def count_transition(phase: str, reason: str) -> None:
    """Count a step of a dispatch; a reason that only the headend knows counts as Other."""
    TRANSITIONS.labels(phase, reason if reason in set(Reason) else "Other").inc()


ORDERS_NOT_TAKEN = Counter(
    "derops_agent_orders_not_taken_total",
    "Orders that were not heard: too great, or too many to be remembered",
)
DEVICE_WRITES = Counter("derops_agent_device_writes_total", "Device writes", ["outcome"])
WRITE_SECONDS = Histogram(
    "derops_agent_device_write_seconds",
    "Time of a device write",
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5),
)
DEVICE_CONNECTIONS = Counter(
    "derops_agent_modbus_connections_total", "Modbus connections, by what became of them", ["what"]
)
UNITS_BACKED_OFF = Gauge(
    "derops_agent_modbus_units_backed_off",
    "Silent Modbus units that are asked rarely, for their neighbours' sake",
)
REVERT_FAILURES = Counter(
    "derops_agent_revert_failures_total", "Writes that failed while a setpoint had to be reverted"
)
SAMPLES = Counter("derops_agent_samples_total", "Samples taken")
SAMPLE_FAILURES = Counter("derops_agent_sample_failures_total", "Samples the device did not give")
BAD_POINTS = Counter(
    "derops_agent_bad_points_total",
    "Points of samples that were absent as the device sent nonsense",
)
SAMPLES_DROPPED = Counter(
    "derops_agent_samples_dropped_total",
    "Samples dropped before they were acknowledged, by reason; a gap stands for them",
    ["reason"],
)
OUTBOXES_DAMAGED = Counter(
    "derops_agent_outboxes_damaged_total", "Times that outbox.db was damaged and put aside"
)
BATCHES_REFUSED = Counter(
    "derops_agent_batches_refused_total",
    "Telemetry batches that broke a rule of the gateway; it keeps them in quarantine",
)
BATCHES_SENT = Counter("derops_agent_batches_sent_total", "Telemetry batches written to a stream")
CLOCK_OFFSET = Gauge(
    "derops_agent_clock_offset_seconds", "Clock of the gateway less that of the agent, last seen"
)
REVISIONS_AHEAD = Counter(
    "derops_agent_revisions_ahead_total",
    "Desired states from more than ten minutes ahead of the clock: obeyed, not kept as the newest",
)
START_LATENESS = Histogram(
    "derops_agent_start_lateness_seconds",
    "From the planned start to the device holding the setpoint",
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 30, 60),
)
