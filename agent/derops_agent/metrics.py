"""What an agent counts; without asset labels, five hundred assets share a process."""

from prometheus_client import Counter, Gauge, Histogram

CONNECTED = Gauge("derops_agent_connected_assets", "Assets with a complete snapshot and a stream")
CONNECTIONS = Counter(
    "derops_agent_stream_ends_total", "Streams that ended, by the reason", ["reason"]
)
TRANSITIONS = Counter(
    "derops_agent_dispatch_transitions_total", "Transitions of dispatches", ["phase", "reason"]
)
DEVICE_WRITES = Counter("derops_agent_device_writes_total", "Device writes", ["outcome"])
WRITE_SECONDS = Histogram(
    "derops_agent_device_write_seconds",
    "Time of a device write",
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5),
)
REVERT_FAILURES = Counter(
    "derops_agent_revert_failures_total", "Writes that failed while a setpoint had to be reverted"
)
SAMPLES = Counter("derops_agent_samples_total", "Samples taken")
SAMPLE_FAILURES = Counter("derops_agent_sample_failures_total", "Samples the device did not give")
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
