"""What the API counts."""

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

REQUEST_SECONDS = Histogram(
    "derops_api_request_seconds",
    "Seconds from a request's head to the last byte of its answer, by the answer's status.",
    ["status"],
    buckets=_FAST,
)
STRANGERS_REFUSED = Counter(
    "derops_api_refused_strangers",
    "Requests refused unread: without a valid credential, or too many, of known callers too.",
    ["why"],
)
OPEN_CALLS = Gauge("derops_api_open_calls", "Calls that are being answered.")
CONNECTIONS = Gauge("derops_api_connections", "Open connections.")
CONNECTIONS_CLOSED = Counter(
    "derops_api_connections_closed",
    "Connections that were closed: the client was too slow, or another one needed the place.",
    ["reason"],
)
REVIEW_SECONDS = Histogram(
    "derops_api_review_seconds",
    "Seconds that the API server took for a TokenReview or SubjectAccessReview.",
    buckets=_FAST,
)
CERTIFICATE_EXPIRY = Gauge(
    "derops_api_certificate_expiry_timestamp_seconds",
    "When the certificate that the API shows expires.",
)
