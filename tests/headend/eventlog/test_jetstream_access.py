"""A nats-server that wants TLS and a user's credentials, as one outside a test does."""

import base64
import ipaddress
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest
from cryptography import x509
from tests.headend.eventlog.engines import MAX_BYTES
from tests.headend.eventlog.test_contract import bodies, entry
from tests.pki import SERVER, Authority
from tests.stack.nats import NatsServer

from derops_headend.eventlog.jetstream import (
    JetStreamEventLog,
    JetStreamLogReader,
    JetStreamSettings,
)
from derops_headend.eventlog.ports import LogUnavailableError

_NO_BOUND = -1


class Signer:
    """An identity of NATS that signs the claims of others."""

    def __init__(self, prefix: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        self._key = nkeys.from_seed(self.seed)
        self.public: str = self._key.public_key.decode()

    def sign(self, subject: "Signer", kind: str, **claims: Any) -> str:
        """Return a JWT in the format of nats-server 2."""
        body = {
            "jti": subject.public,
            "iat": 1_700_000_000,
            "iss": self.public,
            "name": kind,
            "sub": subject.public,
            "nats": {**claims, "type": kind, "version": 2},
        }
        parts = [_base64(json.dumps(part).encode()) for part in (_HEADER, body)]
        parts.append(_base64(self._key.sign(".".join(parts).encode())))
        return ".".join(parts)


_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def credentials(folder: Path) -> tuple[str, Path]:
    """Return a configuration with one account that may use JetStream, and its user's file."""
    operator = Signer(nkeys.PREFIX_BYTE_OPERATOR)
    account, system = (Signer(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(2))
    user = Signer(nkeys.PREFIX_BYTE_USER)
    bounds = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
    storage = ("mem_storage", "disk_storage", "streams", "consumer")
    limits = dict.fromkeys((*bounds, *storage), _NO_BOUND) | {"wildcards": True}
    account_token = operator.sign(account, "account", limits=limits)
    system_limits = dict.fromkeys(bounds, _NO_BOUND) | {"wildcards": True}
    system_token = operator.sign(system, "account", limits=system_limits)
    user_token = account.sign(
        user, "user", pub={}, sub={}, **dict.fromkeys(("subs", "data", "payload"), _NO_BOUND)
    )
    file = folder / "writer.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    configuration = (
        f'operator: "{operator.sign(operator, "operator")}"\n'
        f"resolver: MEMORY\nsystem_account: {system.public}\n"
        f'resolver_preload: {{\n  {account.public}: "{account_token}"\n'
        f'  {system.public}: "{system_token}"\n}}\n'
    )
    return configuration, file


@contextmanager
def guarded(folder: Path) -> Iterator[JetStreamSettings]:
    """Run a server that speaks TLS with those who have credentials."""
    authority = Authority("nats")
    leaf = authority.leaf([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], usages=SERVER)
    for name, data in (("tls.crt", leaf.pem), ("tls.key", leaf.key), ("ca.crt", authority.pem)):
        (folder / name).write_bytes(data)
    configuration, file = credentials(folder)
    tls = f'tls {{ cert_file: "{folder / "tls.crt"}", key_file: "{folder / "tls.key"}" }}\n'
    with NatsServer(tls + configuration) as server:
        yield JetStreamSettings(
            url=server.url.replace("nats://", "tls://"),
            credentials_file=file,
            ca_file=folder / "ca.crt",
        )


async def test_gateway_and_writer_show_their_credentials_over_tls(tmp_path: Path) -> None:
    with guarded(tmp_path) as settings:
        log = await JetStreamEventLog.open(settings, shards=1, max_bytes=MAX_BYTES)
        await log.append([entry(b"kept")])
        await log.close()
        reader = JetStreamLogReader(settings)
        found = await bodies(reader)
        reader.close()

    assert found == [b"kept"]


@pytest.mark.parametrize("missing", ["credentials_file", "ca_file"])
async def test_without_credentials_or_the_right_ca_the_log_is_unavailable(
    tmp_path: Path, missing: str
) -> None:
    with guarded(tmp_path) as settings:
        without: Any = {missing: None}
        with pytest.raises(LogUnavailableError) as refused:
            await JetStreamEventLog.open(
                replace(settings, **without), shards=1, max_bytes=MAX_BYTES
            )

    assert settings.url in str(refused.value)
