"""Files of certificates are read only where gRPC can do with them what they are for."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from tests.pki import Authority

from derops.pem import IdentityFiles

AUTHORITY = Authority("derops")
LEAF = AUTHORITY.agent("battery")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content in {
        "tls.key": LEAF.key,
        "tls.crt": LEAF.pem,
        "ca.crt": AUTHORITY.pem,
    }.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_what_is_right_is_read(directory: Path) -> None:
    read = IdentityFiles.read(directory, directory / "ca.crt")

    assert read == IdentityFiles(key=LEAF.key, certificate=LEAF.pem, ca=AUTHORITY.pem)


def test_several_authorities_are_read(directory: Path) -> None:
    both = AUTHORITY.pem + Authority("next").pem
    (directory / "ca.crt").write_bytes(both)

    assert IdentityFiles.read(directory, directory / "ca.crt").ca == both


@pytest.mark.parametrize("name", ["tls.key", "tls.crt", "ca.crt"])
def test_a_file_that_is_not_there_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()

    with pytest.raises(FileNotFoundError, match=name):
        IdentityFiles.read(directory, directory / "ca.crt")


@pytest.mark.parametrize("name", ["tls.key", "tls.crt", "ca.crt"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b" \n", "is empty", id="blank"),
        pytest.param(b"tls.crt\n", "holds no", id="text"),
        pytest.param(bytes(range(256)), "holds no", id="bytes"),
        pytest.param(LEAF.pem[:200], "holds no", id="a part of it"),
    ],
)
def test_a_file_of_something_else_is_named(
    directory: Path, name: str, content: bytes, why: str
) -> None:
    (directory / name).write_bytes(content)

    with pytest.raises(ValueError, match=f"{name} {why}"):
        IdentityFiles.read(directory, directory / "ca.crt")


def test_the_key_of_another_certificate_is_told(directory: Path) -> None:
    (directory / "tls.key").write_bytes(AUTHORITY.agent("other").key)

    with pytest.raises(ValueError, match=r"tls\.key is not the key of .*tls\.crt"):
        IdentityFiles.read(directory, directory / "ca.crt")


def test_a_key_with_a_password_is_told(directory: Path) -> None:
    key = serialization.load_pem_private_key(LEAF.key, None)
    (directory / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )

    with pytest.raises(ValueError, match=r"tls\.key holds no private key without a password"):
        IdentityFiles.read(directory, directory / "ca.crt")
