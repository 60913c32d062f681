"""Mounts and processes behave as a kubelet's would."""

import sys
from pathlib import Path

import pytest
from tests.stack.build import Binaries
from tests.stack.mounts import write_mount
from tests.stack.places import free_port
from tests.stack.processes import Process, StackError


def test_a_mount_changes_all_files_in_one_step(tmp_path: Path) -> None:
    mount = tmp_path / "certificate"

    assert write_mount(mount, {"tls.crt": b"one", "tls.key": b"key one"})
    first = (mount / "..data").resolve()
    assert not write_mount(mount, {"tls.crt": b"one", "tls.key": b"key one"})
    assert write_mount(mount, {"tls.crt": b"two", "tls.key": b"key two"})

    assert (mount / "tls.crt").read_bytes() == b"two"
    assert (mount / "tls.key").read_bytes() == b"key two"
    assert (mount / "..data").resolve() != first
    assert not first.exists()


def test_ports_are_given_once(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(50)]

    assert len(set(ports)) == 50


def test_a_process_that_ends_while_starting_is_told_with_its_log(tmp_path: Path) -> None:
    process = Process(
        "broken", [sys.executable, "-c", "raise SystemExit('no disk')"], directory=tmp_path
    )
    process.start()

    with pytest.raises(StackError, match=r"(?s)broken ended while starting.*no disk"):
        process.wait_until(lambda: False)
    assert process.terminate() == 1


def test_settings_of_the_surrounding_environment_do_not_leak_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEROPS_WRITER_OPS_PORT", "1")
    code = "import os; print(sorted(key for key in os.environ if key.startswith('DEROPS_')))"
    process = Process(
        "shy", [sys.executable, "-c", code], directory=tmp_path, environment={"DEROPS_X": "1"}
    )
    process.start()
    process.wait_until(lambda: "[" in process.log_file.read_text())

    assert process.terminate() in (0, -15)
    assert process.log_file.read_text().strip() == "['DEROPS_STACK', 'DEROPS_X']"


def test_prebuilt_binaries_are_taken_where_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = Binaries(tmp_path)
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    assert binaries.envtest("etcd") is None

    (tmp_path / "etcd").touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert binaries.envtest("etcd") == str(tmp_path / "etcd")
    assert binaries.envtest("kube-apiserver") is None
