"""The chart's own suites pass, and helm takes each way to install."""

import subprocess
from pathlib import Path

import pytest
from tests.chart.rendering import VARIANTS
from tests.kind import programs
from tests.stack.chart import CHART


@pytest.mark.timeout(900)  # the first time on a machine both are compiled
def test_the_suites_of_helm_unittest_pass() -> None:
    done = subprocess.run(
        [programs.have("helm-unittest"), str(CHART)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.stem)
def test_helm_lints_it(variant: Path) -> None:
    done = subprocess.run(
        [programs.have("helm"), "lint", "--strict", str(CHART), f"--values={variant}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(900)
def test_helm_packages_it_without_what_is_for_developing_it(tmp_path: Path) -> None:
    helm = programs.have("helm")
    subprocess.run([helm, "package", str(CHART), "-d", str(tmp_path)], check=True)
    (archive,) = tmp_path.glob("derops-*.tgz")
    listed = subprocess.run(
        ["tar", "-tzf", archive], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "derops/files/crds/derops.io_dispatches.yaml" in listed
    assert not [each for each in listed if each.startswith(("derops/tests/", "derops/ci/"))]
