"""The way of one asset's telemetry as a chain of links, and why a link is broken. Pure.

Device, sampling, outbox, stream, event log, writer, database. What is broken for one asset is the
reason of its condition ``DataFlowing``; what is broken for all is told once, for the installation.
"""

from enum import StrEnum

CONDITION = "DataFlowing"

LEAST_STALE_SECONDS = 60
"""How long what comes late is no fault."""

STALE_INTERVALS = 3
"""How many samples in a row may be missing before that is a fault."""


class Link(StrEnum):
    """A link of the data path, in the order in which a sample passes them."""

    DEVICE = "Device"
    SAMPLING = "Sampling"
    OUTBOX = "Outbox"
    STREAM = "Stream"
    GATEWAY = "Gateway"
    """Shared by all: whether the operator hears from the gateways."""

    EVENT_LOG = "EventLog"
    WRITER = "Writer"
    DATABASE = "Database"


class AssetFault(StrEnum):
    """Why the data of one asset does not flow; the reason of ``DataFlowing`` where it is False."""

    DEVICE_SILENT = "DeviceSilent"
    """The device is silent, and its last sample is older than what counts as fresh."""

    NO_SAMPLES = "NoSamples"
    """The device answers, and the newest sample that the outbox took is older than that.

    The device refuses to be measured, or sends no value that is one; or the agent's loop hangs.
    """

    CLOCK_WRONG = "ClockWrong"
    """The agent's clock is off by ``LEAST_STALE_SECONDS`` or more: samples lie in another time."""

    OUTBOX_FAILING = "OutboxFailing"
    """The agent's disk has taken no samples for longer than that: they wait in memory."""

    OUTBOX_BEHIND = "OutboxBehind"
    """Samples wait at the agent for longer than that, though the gateway takes all that comes.

    Its link is too slow, or it catches up after an outage and has not done so in the time allowed.
    """

    NOT_ENROLLED = "NotEnrolled"
    """The asset has no certificate yet, so that its agent cannot connect."""

    CERTIFICATE_EXPIRED = "CertificateExpired"
    """The certificate of the agent is no longer valid."""

    QUARANTINED = "Quarantined"
    """The identity of the asset is refused."""

    OUT_OF_SERVICE = "OutOfService"
    """The asset was taken out of service: no agent is served for it."""

    AGENT_OFFLINE = "AgentOffline"
    """The agent has no stream to a gateway."""

    TELEMETRY_REFUSED = "TelemetryRefused"
    """Each batch for longer than that broke a rule; it is in the quarantine, not in its table."""


class SharedFault(StrEnum):
    """Why the data of all assets does not flow; told once, for the installation."""

    GATEWAY_LOST = "GatewayLost"
    """The operator has no connection to a gateway replica."""

    LOG_FAILING = "LogFailing"
    """The event log does not take what arrives."""

    LOG_FULL = "LogFull"
    """The event log is so full that telemetry waits at the agents."""

    LOG_DAMAGED = "LogDamaged"
    """The writer met a record that does not match its checksum, and stands there."""

    WRITER_SILENT = "WriterSilent"
    """No writer has left word for too long."""

    WRITER_BEHIND = "WriterBehind"
    """What is next to be stored has waited in the event log for too long."""

    DATABASE_UNREACHABLE = "DatabaseUnreachable"
    """Nobody answers at the database's address, or it starts or stops."""

    DATABASE_REFUSES = "DatabaseRefuses"
    """The database refuses the writer: password, right, or a database that is not ours."""

    DATABASE_FULL = "DatabaseFull"
    """The database has no room."""

    DATABASE_FAILING = "DatabaseFailing"
    """The database failed in another way."""


class SeenFault(StrEnum):
    """What shows only to who looks from outside; no program says it of itself."""

    OPERATOR_SILENT = "OperatorSilent"
    """The operator has left no word for too long: all that it wrote may be old."""

    NOTHING_STORED = "NothingStored"
    """Each link says that it holds, and the database has nothing new of the asset."""

    OLD_SAMPLES = "OldSamples"
    """The database gets samples of the asset, and they were measured long ago."""


LINK_OF: dict[AssetFault | SharedFault, Link] = {
    AssetFault.DEVICE_SILENT: Link.DEVICE,
    AssetFault.NO_SAMPLES: Link.SAMPLING,
    AssetFault.CLOCK_WRONG: Link.SAMPLING,
    AssetFault.OUTBOX_FAILING: Link.OUTBOX,
    AssetFault.OUTBOX_BEHIND: Link.OUTBOX,
    AssetFault.NOT_ENROLLED: Link.STREAM,
    AssetFault.CERTIFICATE_EXPIRED: Link.STREAM,
    AssetFault.QUARANTINED: Link.STREAM,
    AssetFault.OUT_OF_SERVICE: Link.STREAM,
    AssetFault.AGENT_OFFLINE: Link.STREAM,
    AssetFault.TELEMETRY_REFUSED: Link.EVENT_LOG,
    SharedFault.GATEWAY_LOST: Link.GATEWAY,
    SharedFault.LOG_FAILING: Link.EVENT_LOG,
    SharedFault.LOG_FULL: Link.EVENT_LOG,
    SharedFault.LOG_DAMAGED: Link.WRITER,
    SharedFault.WRITER_SILENT: Link.WRITER,
    SharedFault.WRITER_BEHIND: Link.WRITER,
    SharedFault.DATABASE_UNREACHABLE: Link.DATABASE,
    SharedFault.DATABASE_REFUSES: Link.DATABASE,
    SharedFault.DATABASE_FULL: Link.DATABASE,
    SharedFault.DATABASE_FAILING: Link.DATABASE,
}
"""Which link each fault breaks."""


def stale_after_seconds(interval_seconds: int) -> int:
    """Return how old the newest sample of an asset may be: max(60 s, 3 intervals)."""
    return max(LEAST_STALE_SECONDS, STALE_INTERVALS * interval_seconds)
