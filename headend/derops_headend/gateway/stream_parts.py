"""What every agent's stream of a gateway works with."""

from collections.abc import Callable
from dataclasses import dataclass

from derops_headend.fleet.desired import DesiredState
from derops_headend.fleet.shares import Shares
from derops_headend.gateway.admission_control import AdmissionControl
from derops_headend.gateway.current_operator import CurrentOperator
from derops_headend.gateway.deliveries import Deliveries
from derops_headend.gateway.log_appender import LogAppender
from derops_headend.gateway.outlets import AgentOutlet
from derops_headend.gateway.report_desk import ReportDesk


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamParts:
    """The parts of a gateway that a stream is given; the exchange is not among them."""

    replica: str
    now_us: Callable[[], int]
    desired: DesiredState
    deliveries: Deliveries
    reports: ReportDesk
    journal: LogAppender
    admission: AdmissionControl
    operator: CurrentOperator
    unread: Shares
    """The memory of messages that agents have not read."""

    on_end: Callable[[AgentOutlet, str, str], None]
    """Called with a stream that ended, its reason and its message."""
