"""Why an agent ends a stream, as its Bye says; gateways count them, see ``AGENT_REASONS`` there."""

from enum import StrEnum


class EndReason(StrEnum):
    """A reason of the agent's own; the page on reasons has a row for each."""

    BAD_SNAPSHOT = "BadSnapshot"
    CERTIFICATE_RENEWED = "CertificateRenewed"
    FAILSAFE = "Failsafe"
    OUTBOX_REPLACED = "OutboxReplaced"
    OVERRUN = "Overrun"
    SHUTDOWN = "Shutdown"
    STALE_REPLICA = "StaleReplica"
    WITHDRAWN = "Withdrawn"
    WRONG_ASSET = "WrongAsset"
