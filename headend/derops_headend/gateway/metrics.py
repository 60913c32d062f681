"""What the gateway counts."""

from prometheus_client import Counter, Gauge, Histogram

CONNECTED_AGENTS = Gauge("derops_gateway_connected_agents", "Agents with a live stream.")
OPERATOR_CONNECTED = Gauge(
    "derops_gateway_operator_connected", "1 while the operator is connected."
)
CERTIFICATE_EXPIRY = Gauge(
    "derops_gateway_certificate_expiry_timestamp_seconds",
    "When the certificate that a port shows expires.",
    ["port"],
)
OPERATOR_CLOCK_AHEAD = Gauge(
    "derops_gateway_operator_clock_ahead_seconds",
    "Seconds by which desired state, refused or stored, begins ahead of the clock; 0 = good.",
)
REFUSED_STREAMS = Counter(
    "derops_gateway_refused_streams", "Streams refused, by reason.", ["reason"]
)
ENDED_STREAMS = Counter(
    "derops_gateway_ended_streams", "Streams that ended, by reason.", ["reason"]
)
CLONES_SUSPECTED = Counter(
    "derops_gateway_clones_suspected",
    "Identities that two processes were seen to use.",
)
INSTANCES_FORGOTTEN = Counter(
    "derops_gateway_instances_forgotten",
    "Processes of agents forgotten within 24 h because there were too many of one asset.",
)
REPORTS = Counter("derops_gateway_reports", "Reports of agents made durable.")
REFUSED_REPORTS = Counter(
    "derops_gateway_refused_reports",
    "Reports of agents that broke a rule and were not taken, by the kind of rule.",
    ["reason"],
)
UNLOGGED_REPORTS = Counter(
    "derops_gateway_unlogged_reports",
    "Reports on dispatches not held here, beyond an asset's allowance: acknowledged, not kept.",
)
BATCHES = Counter("derops_gateway_telemetry_batches", "Telemetry batches made durable.")
SAMPLES = Counter("derops_gateway_telemetry_samples", "Telemetry samples made durable.")
SAMPLE_AGE_SECONDS = Histogram(
    "derops_gateway_sample_age_seconds",
    "Age of the oldest sample of a telemetry batch when the batch came.",
    buckets=(0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600, 86400),
)
DROPPED_BATCHES = Counter(
    "derops_gateway_telemetry_batches_beyond_credit",
    "Batches dropped unacknowledged; the agent still has them.",
)
GAPS = Counter("derops_gateway_telemetry_gaps", "Gaps reported by agents.")
REFUSED_BATCHES = Counter(
    "derops_gateway_refused_batches",
    "Telemetry batches that broke a rule; they go into quarantine.",
)
CREDIT_WAITING = Gauge(
    "derops_gateway_credit_waiting",
    "Streams that wait for telemetry credit because the gateway has more to do than it can.",
)
LOG_FILL = Gauge(
    "derops_gateway_log_fill_ratio",
    "Share of the event log's bound that is taken; from 0.95 on telemetry waits at the agents.",
)
LOG_FAILING = Gauge(
    "derops_gateway_log_failing", "1 while the event log does not take what arrives."
)
LOG_FAILURES = Counter("derops_gateway_log_failures", "Appends that failed; each is tried again.")
UNSTORED_CONNECTIONS = Counter(
    "derops_gateway_unstored_connection_events",
    "Connection events that are not in the history: too many of one asset, or the log was stuck.",
)
APPEND_SECONDS = Histogram(
    "derops_gateway_append_seconds",
    "Seconds until a group of entries was durable in the event log.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
HELD_BYTES = Gauge(
    "derops_gateway_held_bytes", "Memory whose growth is bounded, by what it is for.", ["part"]
)
BOUND_REACHED = Counter(
    "derops_gateway_bound_reached", "Times that a bound on memory refused something.", ["part"]
)

# Shown from the start, as they are alarmed of: a first one would not be seen to be an increase.
REFUSED_STREAMS.labels("NotTheOperatorsKey")
REFUSED_REPORTS.labels("AnotherAsset")
