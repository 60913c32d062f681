"""What ``make generate`` makes is what is committed."""

import subprocess
import sys
from pathlib import Path

from derops_agent.drivers.modbus.__main__ import schema_text
from derops_headend.api.__main__ import description_text

REPOSITORY = Path(__file__).resolve().parents[2]
WIRE = REPOSITORY / "headend" / "derops" / "wire" / "v1"
DESCRIPTION = REPOSITORY / "docs" / "reference" / "openapi.json"
SCHEMA = REPOSITORY / "docs" / "reference" / "modbus-profile.schema.json"
IMPORT_ROOT = WIRE.parents[2]
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def contents(directory: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes() for pattern in GENERATED for file in directory.glob(pattern)
    }


def test_generating_again_gives_the_same_bytes(tmp_path: Path) -> None:
    protos = sorted(str(file) for file in WIRE.glob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]

    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{IMPORT_ROOT}", *outputs, *protos],
        check=True,
    )
    fresh = contents(tmp_path / WIRE.relative_to(IMPORT_ROOT))
    for message_only in ("dispatch_pb2_grpc.py", "log_pb2_grpc.py"):
        del fresh[message_only]

    assert fresh == contents(WIRE)


def test_the_schema_of_profiles_is_that_of_the_code() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text()


def test_the_description_of_the_api_is_that_of_the_code() -> None:
    assert DESCRIPTION.read_text(encoding="utf-8") == description_text()


def test_the_page_on_the_api_is_that_of_its_description() -> None:
    made = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "api_reference.py")],
        check=True,
        capture_output=True,
    )

    assert (DESCRIPTION.parent / "api.md").read_bytes() == made.stdout
