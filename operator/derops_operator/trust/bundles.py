"""What is told of an authority: its certificate as it is, and those before that still count. Pure.

So a CA with a new key is trusted before it signs its first certificate, and the CA before it until
that one expires.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from derops.errors import DeropsError
from derops_operator.resources.manifests import attempt

MAX_AUTHORITIES = 5
"""Certificates in a bundle; of earlier ones the newest stay."""

MAX_BUNDLE_BYTES = 32 * 1024
"""Of a file that is read, and of a bundle that is written. One certificate of ours has 600."""

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


class BadAuthorityError(DeropsError):
    """What should be the certificate of an authority is none; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Certificates of one authority, as gateway or agents are to hold them."""

    pem: str
    authorities: int
    ends: datetime
    """When the newest is over."""

    left_out: int
    """Earlier ones that have not expired and did not fit."""


def next_bundle(current: bytes, earlier: str, now: datetime) -> Bundle:
    """Return what to tell now.

    Args:
        current: PEM of the authority as it is. What has expired stays in: nothing better is known.
        earlier: What was told before, from a place that no tenant writes. What of it cannot be
            read, is no authority or has expired is left out.
        now: Decides what has expired.

    Raises:
        BadAuthorityError: ``current`` is not the certificate of an authority.
    """
    own = read_authorities(current)
    pems = [_pem(each) for each in own]
    left_out = 0
    for each in _readable(earlier):
        pem = _pem(each)
        if pem in pems or each.not_valid_after_utc <= now:
            continue
        room = MAX_BUNDLE_BYTES - sum(len(known) for known in pems)
        if len(pems) < MAX_AUTHORITIES and len(pem) <= room:
            pems.append(pem)
        else:
            left_out += 1
    return Bundle(
        pem="".join(pems),
        authorities=len(pems),
        ends=own[0].not_valid_after_utc,
        left_out=left_out,
    )


def read_authorities(pem: bytes) -> Sequence[x509.Certificate]:
    """Return the certificates of a file.

    Raises:
        BadAuthorityError: There is none, one is no authority, or there are too many.
    """
    if len(pem) > MAX_BUNDLE_BYTES:
        raise BadAuthorityError(f"{len(pem)} bytes; at most {MAX_BUNDLE_BYTES} are read")
    if not pem.strip():
        raise BadAuthorityError("it is empty")
    found, problem = attempt(lambda: x509.load_pem_x509_certificates(pem))
    if not found:
        raise BadAuthorityError(f"it holds no certificate: {problem}")
    if len(found) > MAX_AUTHORITIES:
        raise BadAuthorityError(f"{len(found)} certificates; at most {MAX_AUTHORITIES} are taken")
    for each in found:
        if not _is_authority(each):
            raise BadAuthorityError(f"serial number {each.serial_number:x} is no authority's")
    return found


def _readable(text: str) -> Iterable[x509.Certificate]:
    for part in text[: 2 * MAX_BUNDLE_BYTES].split(_BEGIN)[1 : 2 * MAX_AUTHORITIES]:
        body, end, _ = part.partition(_END)
        block = f"{_BEGIN}{body}{end}\n".encode()
        found, _ = attempt(partial(x509.load_pem_x509_certificate, block))
        if found is not None and _is_authority(found):
            yield found


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints, _ = attempt(
        lambda: certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    )
    return constraints is not None and constraints.ca


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")
