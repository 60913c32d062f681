"""The operator's certificate as a file, where what is beside it fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pki import Authority, Leaf

from derops.errors import IdentityRefusedError
from derops.observability import Readiness
from derops_headend.access.certificates import OperatorCertificate
from derops_headend.access.operator_key import OperatorKeys
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.gateway.operator_identity import OperatorIdentity

NOW = 1_800_000_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DesiredStore]:
    store = DesiredStore(tmp_path / "desired.db", 1)
    yield store
    store.close()


def certificate(leaf: Leaf) -> OperatorCertificate:
    return OperatorCertificate(
        public_key_sha256=leaf.known.public_key_sha256, not_after_us=NOW + 10**15
    )


async def test_a_disk_that_takes_nothing_keeps_no_operator_out(
    tmp_path: Path, store: DesiredStore
) -> None:
    before, renewed = (Authority("control").agent("operator") for _ in range(2))
    file, readiness = tmp_path / "tls.crt", Readiness()
    identity = OperatorIdentity(file, store, readiness, lambda: NOW)
    file.write_bytes(before.pem)
    await identity.admit(certificate(before))

    store._connection.execute("PRAGMA query_only = 1")  # as a full disk
    file.write_bytes(renewed.pem)
    await identity.admit(certificate(renewed))
    await identity.admit(certificate(before))
    assert store.operator_keys().current == before.known.public_key_sha256

    store._connection.execute("PRAGMA query_only = 0")
    await identity.refresh()
    kept = store.operator_keys()
    assert (kept.current, kept.previous) == (
        renewed.known.public_key_sha256,
        before.known.public_key_sha256,
    )


async def test_what_was_kept_admits_nobody_while_the_file_is_away(
    tmp_path: Path, store: DesiredStore
) -> None:
    leaf = Authority("control").agent("operator")
    await store.keep_operator_keys(OperatorKeys(current=leaf.known.public_key_sha256))
    identity = OperatorIdentity(tmp_path / "tls.crt", store, Readiness(), lambda: NOW)

    with pytest.raises(IdentityRefusedError, match="cannot be read"):
        await identity.admit(certificate(leaf))

    identity.check(certificate(leaf))  # who is here stays


async def test_an_expired_certificate_does_not_stay(tmp_path: Path, store: DesiredStore) -> None:
    leaf = Authority("control").agent("operator")
    (tmp_path / "tls.crt").write_bytes(leaf.pem)
    identity = OperatorIdentity(tmp_path / "tls.crt", store, Readiness(), lambda: NOW)
    await identity.refresh()
    expired = OperatorCertificate(public_key_sha256=leaf.known.public_key_sha256, not_after_us=NOW)

    with pytest.raises(IdentityRefusedError, match="CertificateExpired"):
        identity.check(expired)
