"""Every error that this product raises on purpose.

Those that several programs know are here, the others where they are raised.

DeropsError
|-- SettingError                a setting is missing or wrong; ends the program with exit code 2
|   `-- DriverOptionError       an option of a driver
|-- SchemaTooNewError           a database or file was made for newer programs
|-- IdentityRefusedError        a peer may not be what it says it is
|-- DeviceError                 a device did not do what was asked of it
|   |-- DeviceTimeoutError      it did not answer; trying again may help
|   |   |-- DeviceUnreachableError  and nothing was sent that could change it
|   |   |-- AnsweredError       the unit failed at what it was asked for alone
|   |   |-- BusyError           the unit did nothing, and is to be asked again
|   |   |-- AcknowledgedError   the unit needs longer
|   |   |-- NotAskedError       nothing was sent
|   |   `-- MovedError          the map of the device is not where it was
|   `-- DeviceRefusedError      it said no; trying again will not help
|-- StreamEndedError            the agent's stream is over
|-- LogDamagedError             a record of the event log does not match its checksum
|-- LogMissingError             no gateway has made the event log yet
|-- LogUnavailableError         the event log's engine is away
|-- LogMismatchError            the event log is not what the settings say
|-- LogFullError                the event log is at its bound
|-- SkipRefusedError            a record that is to be skipped stops no writer
|-- EntryRefusedError           an entry of the event log cannot become rows
|-- OffsetMovedError            another writer stored the same part of the log
|-- NotReadyError               a gateway has no complete desired state yet
|-- BadSyncError                what the operator sent makes no sense
|-- OutOfOrderError             a stream may not take over; its agent may try again
|   |-- EpochTooLowError        one with a newer epoch is known
|   |-- EpochTooHighError       its epoch could not be exceeded
|   `-- CertificateSupersededError  a newer key had a stream
|-- CloneSuspectedError         two processes have one identity
|-- ChangedMeanwhileError       an object is not as it was decided on
|-- GoneError                   an object does not exist any more
|-- ListExpiredError            a list of objects is too old to go on with
|-- WordUnavailableError        word of a writer cannot be left or read now
|-- UsageError                  the plugin was called in a way that makes no sense
|-- CannotLookError             the plugin could not look at anything
|-- BadAuthorityError           a certificate is that of no authority
`-- ProblemError                the API answers with a problem
"""


class DeropsError(Exception):
    """Root of the tree; catch it only where a program meets the outside."""


class SettingError(DeropsError):
    """A setting is missing or wrong."""

    def __init__(self, setting: str, source: str, problem: str) -> None:
        super().__init__(f"{setting} ({source}): {problem}")
        self.setting = setting
        self.source = source
        self.problem = problem


class SchemaTooNewError(DeropsError):
    """A newer program wrote the store, and noted that this one would misread it."""

    def __init__(self, store: str, readable_from: int, known: int) -> None:
        super().__init__(
            f"{store} can be used by programs of schema version {readable_from} or newer, "
            f"and this one has {known}: run a newer program, or restore a backup made before "
            "the upgrade"
        )
        self.readable_from = readable_from
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

    answered = False
    """Whether it answered after all, that it failed, which does not say whether it acted."""


class DeviceUnreachableError(DeviceTimeoutError):
    """The device did not answer, and nothing was sent to it that could change what it holds."""


class DeviceRefusedError(DeviceError):
    """The device answered that it will not."""
