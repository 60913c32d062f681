"""The operator's certificate as a file that changes, and the check of peers against it.

The file is `tls.crt` of the operator's Secret, mounted without its key.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import structlog

from derops.errors import IdentityRefusedError
from derops.observability import Readiness
from derops.schedules import SECOND_US
from derops_headend.access.certificates import OperatorCertificate, public_key_sha256
from derops_headend.gateway.desired_store import DesiredStore

_FILE, _PEER = "operator certificate", "operator key"
_TOLD_US = 600 * SECOND_US
"""How long the readiness tells of a refused peer while the operator is connected."""


class OperatorIdentity:
    """Reads the file, keeps the previous key over restarts, and tells the readiness of faults."""

    def __init__(
        self, file: Path, store: DesiredStore, readiness: Readiness, now_us: Callable[[], int]
    ) -> None:
        self._file, self._store, self._readiness = file, store, readiness
        self._now_us = now_us
        self._keys = self._kept = store.operator_keys()
        self._problem = "it was not read yet"
        self._refused_us = 0
        self._reading = asyncio.Lock()
        self._log = structlog.get_logger("operator")

    async def refresh(self) -> None:
        """Read the file as it is now; tell the readiness what is wrong with it, raise nothing."""
        async with self._reading:
            try:
                pem = await asyncio.to_thread(self._file.read_bytes)
                found = public_key_sha256(pem)
            except (OSError, ValueError) as error:
                self._problem = f"{self._file}: {error}"
                self._readiness.degraded(_FILE, f"no operator is admitted: {self._problem}")
                return
            self._problem = ""
            self._readiness.found(_FILE)
            self._keys = self._keys.follow(found, self._now_us())
            if self._keys == self._kept:
                return
            self._log.info("operator.key", current=found, previous=self._keys.previous)
            try:
                await self._store.keep_operator_keys(self._keys)
            except sqlite3.Error as error:  # tried again with the next look
                self._log.error("operator.key_not_stored", why=str(error))
            else:
                self._kept = self._keys

    async def admit(self, certificate: OperatorCertificate) -> None:
        """Check that a certificate that calls itself the operator's has the operator's key.

        Raises:
            IdentityRefusedError: It has not, or the file cannot be read; the readiness tells of it
                until the operator connects.
        """
        await self.refresh()
        try:
            if self._problem:
                raise IdentityRefusedError(
                    "NotTheOperatorsKey",
                    f"the operator's certificate cannot be read: {self._problem}",
                    transient=True,
                )
            self._keys.check(certificate.public_key_sha256, self._now_us())
        except IdentityRefusedError as refused:
            self._refused_us = self._now_us()
            self._readiness.degraded(_PEER, f"a peer was refused: {refused.message}")
            raise

    def check(self, certificate: OperatorCertificate) -> None:
        """Check that an admitted operator may stay; while the file cannot be read it may.

        Raises:
            IdentityRefusedError: Its certificate expired, or another has taken its place.
        """
        now_us = self._now_us()
        if now_us >= certificate.not_after_us:
            raise IdentityRefusedError("CertificateExpired", "the certificate is no longer valid")
        self._keys.check(certificate.public_key_sha256, now_us)

    def note_connected(self, *, new: bool) -> None:
        """Stop telling of a refused peer, if the operator came since or it is long ago."""
        if new or self._now_us() - self._refused_us > _TOLD_US:
            self._readiness.found(_PEER)
