"""What our metrics show, by what prometheus-client lets everybody ask."""

from prometheus_client import Counter, Gauge


def value_of(metric: Counter | Gauge) -> float:
    """Return the value of a metric without labels, or of one child of a metric with labels."""
    (family,) = metric.collect()
    return family.samples[0].value
