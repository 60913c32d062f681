"""Every error this product raises on purpose.

DeropsError
|-- SettingError            a setting is missing or wrong; ends the program with exit code 2
|-- SchemaTooNewError       a database or file was written by a newer program
|-- LogDamagedError         a record of the event log does not match its checksum
|-- IdentityRefusedError    a peer may not be what it says it is
`-- DeviceError             a device did not do what was asked of it
    |-- DeviceTimeoutError  it did not answer; trying again may help
    |   `-- DeviceUnreachableError  and nothing was sent that could change it
    `-- DeviceRefusedError  it said no; trying again will not help
"""

from typing import ClassVar


class DeropsError(Exception):
    """Root of the tree; catch it only where a program meets the outside."""

    retryable: ClassVar[bool] = False


class SettingError(DeropsError):
    """A setting is missing or wrong."""

    def __init__(self, setting: str, source: str, problem: str) -> None:
        super().__init__(f"{setting} ({source}): {problem}")
        self.setting = setting
        self.source = source
        self.problem = problem


class SchemaTooNewError(DeropsError):
    """The store was written by a newer program; this one would misread it."""

    def __init__(self, store: str, found: int, known: int) -> None:
        super().__init__(
            f"{store} has schema version {found}, this program knows up to {known}: "
            f"run the newer program, or restore a backup made before the upgrade"
        )
        self.found = found
        self.known = known


class LogDamagedError(DeropsError):
    """A record of the event log does not match its checksum; nothing after it is read."""

    def __init__(self, log: str, offset: int) -> None:
        super().__init__(f"event log {log}: record {offset} does not match its checksum")
        self.log = log
        self.offset = offset


class IdentityRefusedError(DeropsError):
    """A peer's certificate does not entitle it to the stream it asks for.

    ``reason`` is a CamelCase word for metrics and audit. ``transient`` says that the same
    certificate may be good in a moment, once the ledger has caught up.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.transient = transient


class DeviceError(DeropsError):
    """A device did not do what was asked of it."""


class DeviceTimeoutError(DeviceError):
    """The device did not answer in time; whether it acted is not known."""

    retryable = True

    answered = False
    """Whether it answered after all, that it failed, which does not say whether it acted."""


class DeviceUnreachableError(DeviceTimeoutError):
    """The device did not answer, and nothing was sent to it that could change what it holds."""


class DeviceRefusedError(DeviceError):
    """The device answered that it will not."""
