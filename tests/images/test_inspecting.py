"""An image with what does not belong in it is found out, and one without is not."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
from images.archives import read_image
from images.inspecting import findings
from tests.images.archive import CONFIG, file, write_archive

_LIBRARY = "opt/derops/lib"
_OWN = [
    file(f"{_LIBRARY}/derops", mode=0o755, kind=tarfile.DIRTYPE),
    file(f"{_LIBRARY}/derops_agent", mode=0o755, kind=tarfile.DIRTYPE),
    file(f"{_LIBRARY}/derops_agent/__pycache__/main.cpython-313.pyc"),
    file("usr/lib/python3.13/unittest/case.py"),
    file("tmp", mode=0o1777, kind=tarfile.DIRTYPE),
    file("usr/bin/sh", mode=0o777, kind=tarfile.SYMTYPE),
]


def _findings(tmp_path: Path, *more: Any, config: Any = CONFIG) -> list[str]:
    archive = write_archive(tmp_path / "agent.tar", [*_OWN, *more], config=config)
    return findings(read_image(archive), "agent", "amd64", "3.13")


def test_nothing_is_found_in_a_clean_image(tmp_path: Path) -> None:
    assert _findings(tmp_path) == []


@pytest.mark.parametrize(
    "intruder",
    [
        pytest.param(file("usr/bin/gcc-14"), id="compiler"),
        pytest.param(file("usr/local/bin/pip3.13"), id="pip"),
        pytest.param(file("usr/local/lib/python3.13/site-packages/pip"), id="pip's package"),
        pytest.param(file("usr/bin/apt-get"), id="package manager"),
        pytest.param(file(f"{_LIBRARY}/numpy/tests"), id="tests"),
        pytest.param(file(f"{_LIBRARY}/derops_agent/test_main.py"), id="test"),
        pytest.param(file(f"{_LIBRARY}/derops_operator"), id="another program"),
        pytest.param(file("opt/derops/bin/derops-headend"), id="another program's script"),
        pytest.param(file(f"{_LIBRARY}/x/__pycache__/y.cpython-311.pyc"), id="foreign bytecode"),
        pytest.param(file(f"{_LIBRARY}/x/.git"), id="repository"),
        pytest.param(file(f"{_LIBRARY}/x.dist-info/direct_url.json"), id="path of the build"),
        pytest.param(file("root/.netrc"), id="login"),
        pytest.param(file("etc/ssl/private.key"), id="key"),
        pytest.param(file("var/cache/apt"), id="cache"),
        pytest.param(file("usr/bin/x", mode=0o4755), id="setuid"),
        pytest.param(file("usr/share/x", mode=0o666), id="writable by anybody"),
        pytest.param(file("usr/share/x", user_id=1000), id="not root's"),
        pytest.param(file("dev/sda", kind=tarfile.BLKTYPE), id="device"),
    ],
)
def test_what_does_not_belong_is_named(tmp_path: Path, intruder: tarfile.TarInfo) -> None:
    found = _findings(tmp_path, intruder)

    assert any(intruder.name in finding for finding in found)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        pytest.param({"User": "root"}, "root", id="root"),
        pytest.param({"User": "65532:65532", "Volumes": {"/x": {}}}, "volumes", id="volume"),
        pytest.param({"User": "65532:65532", "Env": ["PIP_TOKEN=1"]}, "PIP_TOKEN", id="token"),
        pytest.param({"User": "65532:65532", "Env": ["http_proxy=1"]}, "http_proxy", id="proxy"),
    ],
)
def test_a_configuration_that_is_not_ours_is_named(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    (finding,) = _findings(tmp_path, config=CONFIG | {"config": config})

    assert named in finding


def test_an_image_of_another_architecture_is_named(tmp_path: Path) -> None:
    (finding,) = _findings(tmp_path, config=CONFIG | {"architecture": "arm64"})

    assert "arm64" in finding
