"""Whether the ledger of an asset admits a certificate, and whether its state admits a stream."""

from derops.errors import IdentityRefusedError
from derops.modes import OperatingState
from derops.wire.v1 import dispatch_pb2


def admit(
    ledger: dispatch_pb2.IdentityLedger, serial_number: str, public_key_sha256: str, now_us: int
) -> None:
    """Check a certificate against the ledger; the same rule at Hello and while a stream lives.

    Raises:
        IdentityRefusedError: It is not admitted. An unknown serial is transient: the operator may
            have issued it a moment ago.
    """
    if ledger.quarantine:
        raise IdentityRefusedError("Quarantined", f"asset is quarantined: {ledger.quarantine}")
    for slot in ("current", "next", "previous"):
        known: dispatch_pb2.KnownCertificate = getattr(ledger, slot)
        if known.serial_number != serial_number:
            continue
        if known.public_key_sha256 != public_key_sha256:
            raise IdentityRefusedError(
                "PublicKeyMismatch", f"serial {serial_number} belongs to another key"
            )
        if slot == "previous" and now_us >= known.accepted_until_us:
            raise IdentityRefusedError(
                "CertificateReplaced", f"serial {serial_number} was replaced, its grace is over"
            )
        return
    raise IdentityRefusedError(
        "UnknownSerial", f"serial {serial_number} is not in the ledger", transient=True
    )


def check_operating_state(operating_state: str, *, dispatches: int) -> None:
    """Check that an asset's state lets it have a stream.

    An asset that leaves service keeps its stream while dispatches are unsettled: their
    cancellation, and the report that the device was released, need it.

    Raises:
        IdentityRefusedError: Its state allows no stream; being out of service is transient.
    """
    if operating_state == OperatingState.QUARANTINED and not dispatches:
        raise IdentityRefusedError("AssetQuarantined", "operatingState is Quarantined")
    if operating_state == OperatingState.OUT_OF_SERVICE and not dispatches:
        raise IdentityRefusedError(
            "AssetOutOfService", "operatingState is OutOfService", transient=True
        )
