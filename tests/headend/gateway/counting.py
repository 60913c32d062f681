"""What programs in this process have counted."""

from prometheus_client import REGISTRY


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def refused_streams(reason: str) -> float:
    return counted("derops_gateway_refused_streams_total", reason=reason)


def clones_suspected() -> float:
    return counted("derops_gateway_clones_suspected_total")
