"""What an agent's report says of the phase and of the device."""

from derops.lifecycle import Phase, Reason
from derops.wire.v1 import dispatch_pb2


def is_silent(report: dispatch_pb2.DispatchReport) -> bool:
    """Tell whether an agent says that the device does not answer: what it holds is not known."""
    if Phase(report.phase or Phase.SUBMITTED).terminal:
        unreverted = report.ended_us > 0 and not report.reverted_us  # 0: it was never touched
        return report.reason == Reason.DEVICE_OFFLINE and unreverted
    return report.verified_reason == Reason.DEVICE_OFFLINE


def is_unreverted(report: dispatch_pb2.DispatchReport) -> bool:
    """Tell whether an agent says that it ended, and has yet to say that the device is reverted.

    Also one that was never applied: a device that takes something else holds what nobody wants.
    """
    terminal = Phase(report.phase or Phase.SUBMITTED).terminal
    return terminal and report.ended_us > 0 and not report.reverted_us  # 0: it was never touched
