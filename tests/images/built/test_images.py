"""The images as ``make images`` wrote them: what they hold, how they run, and a second time.

``make images-test`` makes them first. It needs root and runc, and a few minutes.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from images.archives import image_digest, read_image
from images.bases import PYTHON_MINOR
from images.builders import own_arch
from images.inspecting import findings
from tests.images.containers import Container, Unpacked, unpack
from tests.kind.images import full, read
from tests.stack import places

IMAGES = places.BUILD / "images"
PROGRAMS = ("operator", "headend", "agent")
MOST_COMPRESSED_BYTES = 100_000_000
VERSION = "0.1.0"

_QEMU = {"arm64": "qemu-aarch64-static", "amd64": "qemu-x86_64-static"}
_IMPORT_ALL = """
import contextlib, importlib, pathlib
with contextlib.suppress(ImportError):
    import psycopg  # it insists on being the first
root = pathlib.Path("/opt/derops/lib")
names = {str(path.relative_to(root)).split(".")[0].replace("/", ".") for path in root.rglob("*.so")}
for name in sorted(names):
    importlib.import_module(name)
print(len(names))
"""


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("images")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@cache
def _unpacked(program: str, arch: str, scratch: Path) -> Unpacked:
    return unpack(IMAGES / f"{program}-{arch}.tar", scratch / f"{program}-{arch}" / "root")


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _container(
    program: str, scratch: Path, user_id: int = 65532, environment: Mapping[str, str] | None = None
) -> Container:
    image = _unpacked(program, own_arch(), scratch)
    return Container(image=image, user_id=user_id, environment=environment)


@pytest.mark.parametrize("archive", sorted(IMAGES.glob("*-a*64.tar")), ids=lambda file: file.stem)
def test_an_image_is_small_and_holds_only_what_belongs(archive: Path) -> None:
    program, _, arch = archive.stem.rpartition("-")
    if program not in PROGRAMS:
        return
    assert findings(read_image(archive), program, arch, PYTHON_MINOR) == []
    assert len(gzip.compress(archive.read_bytes(), 6)) < MOST_COMPRESSED_BYTES


@pytest.mark.parametrize("archive", sorted(IMAGES.glob("*-a*64.tar")), ids=lambda file: file.stem)
def test_an_archive_gives_an_image_the_one_name_that_pages_tell(archive: Path) -> None:
    program, _, _ = archive.stem.rpartition("-")
    if program not in PROGRAMS:
        return
    names = [full(name) for name in read(archive).names]
    assert names == [f"docker.io/derops/{program}:{VERSION}"]


@pytest.mark.parametrize("environment", [None, {}], ids=["image's environment", "no environment"])
@pytest.mark.parametrize("user_id", [65532, 1_000_710_000])
def test_a_program_says_its_version_whoever_runs_it(
    program: str, user_id: int, environment: Mapping[str, str] | None, scratch: Path
) -> None:
    done = _container(program, scratch, user_id, environment).run("--version")

    assert (done.returncode, done.stdout.split(), done.stderr) == (
        0,
        [f"derops-{program}", VERSION],
        "",
    )


@pytest.mark.parametrize("user_id", [65532, 1_000_710_000])
@pytest.mark.parametrize(
    ("command", "named"),
    [
        pytest.param(["operator"], "DEROPS_OPERATOR_GATEWAYS", id="operator"),
        pytest.param(["headend", "gateway"], "DEROPS_GATEWAY_", id="gateway"),
        pytest.param(["headend", "writer"], "DEROPS_WRITER_", id="writer"),
        pytest.param(["headend", "api"], "DEROPS_API_", id="api"),
        pytest.param(["agent", "--config", "/nowhere.yaml"], "/nowhere.yaml", id="agent"),
    ],
)
def test_a_program_without_settings_ends_with_one_line(
    command: list[str], named: str, user_id: int, scratch: Path
) -> None:
    done = _container(command[0], scratch, user_id, {}).run(*command[1:])

    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_nothing_but_memory_can_be_written(program: str, scratch: Path) -> None:
    script = "touch /tmp/x; touch /opt/derops/x || touch /x || touch /home/x || echo refused"
    done = _container(program, scratch).run(entrypoint=["/bin/sh", "-c", script])

    assert done.stdout == "refused\n"
    assert done.stderr.count("Read-only file system") == 3


def test_each_compiled_module_finds_its_libraries(program: str, scratch: Path) -> None:
    done = _container(program, scratch).run(entrypoint=["python3", "-c", _IMPORT_ALL])

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_bytecode_is_not_compiled_at_each_start(program: str, scratch: Path) -> None:
    script = f"import derops_{program}.main"
    done = _container(program, scratch).run(entrypoint=["python3", "-v", "-c", script])

    assert done.returncode == 0, done.stderr
    compiled = [
        line for line in done.stderr.splitlines() if line.startswith("# code object from /")
    ]
    assert compiled == []


def test_ready_says_that_nobody_listens(program: str, scratch: Path) -> None:
    done = _container(program, scratch).run(entrypoint=["/opt/derops/bin/ready", "8080"])

    assert done.returncode == 1
    assert "8080" in done.stdout


def test_the_bill_of_materials_lists_what_python_finds(program: str, scratch: Path) -> None:
    script = (
        "from importlib.metadata import distributions as d;"
        "print(*{x.name.lower().replace('_', '-') + ' ' + x.version for x in d()}, sep='\\n')"
    )
    done = _container(program, scratch).run(entrypoint=["python3", "-c", script])

    bill = json.loads((IMAGES / f"{program}-{own_arch()}.cdx.json").read_text())
    listed = {
        f"{component['name']} {component['version']}"
        for component in bill["components"]
        if component.get("purl", "pkg:pypi").startswith("pkg:pypi")
    }
    assert listed == set(done.stdout.split("\n")) - {""}


def test_zones_and_authorities_are_there(program: str, scratch: Path) -> None:
    script = (
        "import ssl, zoneinfo; zoneinfo.ZoneInfo('Europe/Berlin');"
        "print(len(ssl.create_default_context().get_ca_certs()))"
    )
    done = _container(program, scratch).run(entrypoint=["python3", "-c", script])

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_a_second_build_from_nothing_gives_the_same_image(tmp_path: Path) -> None:
    """Another cache: other Debian packages' files, another storage, nothing of the first build."""
    tools = places.cache() / "tools"
    (tmp_path / "derops").mkdir()
    if tools.exists():
        (tmp_path / "derops" / "tools").symlink_to(tools)
    downloads = os.environ.get("UV_CACHE_DIR") or str(places.cache().parent / "uv")
    again = tmp_path / "again"
    subprocess.run(
        [
            sys.executable, "-m", "images", "--program", "agent", "--arch", own_arch(),
            "--output", str(again),
        ],
        cwd=places.REPOSITORY,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path), "UV_CACHE_DIR": downloads},
        check=True,
    )  # fmt: skip

    name = f"agent-{own_arch()}"
    assert image_digest(again / f"{name}.tar") == image_digest(IMAGES / f"{name}.tar")
    bills = [(directory / f"{name}.cdx.json").read_text() for directory in (again, IMAGES)]
    assert bills[0] == bills[1]


def test_what_is_there_is_not_made_again(scratch: Path) -> None:
    archive = IMAGES / f"agent-{own_arch()}.tar"
    before = archive.stat().st_mtime_ns
    command = [sys.executable, "-m", "images", "--program", "agent", "--arch", own_arch()]
    subprocess.run(command, cwd=places.REPOSITORY, check=True, timeout=20)

    assert archive.stat().st_mtime_ns == before


def test_the_agent_starts_on_the_other_architecture(scratch: Path) -> None:
    other = {"amd64": "arm64", "arm64": "amd64"}[own_arch()]
    qemu = shutil.which(_QEMU[other])
    if qemu is None:
        pytest.skip(f"{_QEMU[other]} is not on PATH: apt-get install qemu-user-static")
    if not (IMAGES / f"agent-{other}.tar").exists():
        pytest.skip(f"no image for {other}: make images")
    container = Container(
        image=_unpacked("agent", other, scratch),
        user_id=65532,
        mounts={Path(qemu).parent: "/emulator"},
    )
    python = [f"/emulator/{_QEMU[other]}", "/usr/bin/python3"]
    done = container.run("--version", entrypoint=[*python, "/opt/derops/bin/entrypoint"])
    assert (done.returncode, done.stdout.split()) == (0, ["derops-agent", VERSION]), done.stderr

    script = "import derops_agent.main, grpc, numpy, platform; print(platform.machine())"
    done = container.run(entrypoint=[*python, "-c", script])
    assert done.stdout.strip() == {"arm64": "aarch64", "amd64": "x86_64"}[other], done.stderr
