"""Tokens, forwarded ports, and who never answers."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.cli import clusters
from tests.waiting import eventually

from derops_cli import kubectl
from derops_cli.api import forwarded
from derops_cli.collecting import Cluster
from derops_cli.credentials import Login
from derops_cli.deadline import Deadline
from derops_cli.evidence import Missing
from derops_cli.kubectl import Flags, Kubectl, read_failure

SECONDS = 60


def kubeconfig(
    directory: Path, user: Mapping[str, object], server: str = "https://127.0.0.1:1"
) -> str:
    file = directory / "config"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return str(file)


def script(directory: Path, name: str, text: str) -> Path:
    file = directory / name
    file.write_text(f"#!{sys.executable}\n{text}")
    file.chmod(0o755)
    return file


def token(config: str) -> str | Missing:
    deadline = Deadline(SECONDS)
    return Login(kubectl=True).have_token(Kubectl(Flags(kubeconfig=config), deadline), deadline)


def test_the_token_of_kubectls_plugin_is_taken(tmp_path: Path) -> None:
    told = tmp_path / "told"
    plugin = script(
        tmp_path, "login",
        "import json, os, pathlib, sys\n"
        f"pathlib.Path({str(told)!r}).write_text(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "print(json.dumps({'kind': 'ExecCredential', 'status': "
        "{'token': os.environ['WHO'] + sys.argv[1]}}))\n",
    )  # fmt: skip
    version = "client.authentication.k8s.io/v1"
    user = {
        "exec": {
            "apiVersion": version,
            "command": str(plugin),
            "args": ["-token"],
            "env": [{"name": "WHO", "value": "alice"}],
            "interactiveMode": "Never",
        }
    }

    assert token(kubeconfig(tmp_path, user)) == "alice-token"
    assert json.loads(told.read_text()) == {
        "apiVersion": version,
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [("raise SystemExit(1)", "it failed"), ("print('{}')", "no token"), ("print('x')", "no token")],
)
def test_a_plugin_that_gives_no_token_is_told(tmp_path: Path, text: str, says: str) -> None:
    plugin = script(tmp_path, "login", text)
    version = "client.authentication.k8s.io/v1"
    user = {"exec": {"apiVersion": version, "command": str(plugin), "interactiveMode": "Never"}}

    found = token(kubeconfig(tmp_path, dict(user)))

    assert isinstance(found, Missing)
    assert says in found.why


def test_a_token_of_the_kubeconfig_is_taken_and_a_certificate_is_none(tmp_path: Path) -> None:
    assert token(kubeconfig(tmp_path, {"token": "mine"})) == "mine"
    found = token(kubeconfig(tmp_path, {"username": "a", "password": "b"}))
    assert isinstance(found, Missing)
    assert "without a token" in found.why


def test_a_token_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    login = Login(token=f"@{tmp_path}/token")
    login.check()
    deadline = Deadline(SECONDS)

    assert login.have_token(Kubectl(Flags(), deadline), deadline) == "abc"


def stand_in(
    monkeypatch: pytest.MonkeyPatch, directory: Path, text: str, seconds: float = SECONDS
) -> tuple[Cluster, Deadline]:
    """Have a program stand in for kubectl, of which only its process is looked at."""
    script(directory, "kubectl", text)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    deadline = Deadline(seconds)
    return Cluster(Kubectl(Flags(), deadline), "derops-system"), deadline


def test_a_forwarded_port_is_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    cluster, deadline = stand_in(
        monkeypatch, tmp_path,
        "import os, pathlib, sys, time\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()) + ' ' + sys.argv[1])\n"
        "print('Forwarding from 127.0.0.1:4711 -> 8443', flush=True)\ntime.sleep(600)\n",
    )  # fmt: skip

    with forwarded(cluster, deadline) as port:
        assert port == 4711
        pid, command = pid_file.read_text().split()
        assert command == "port-forward"
        assert Path(f"/proc/{pid}").exists()

    eventually(lambda: not Path(f"/proc/{pid}").exists(), "its end")


def test_a_port_that_is_not_forwarded_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster, deadline = stand_in(
        monkeypatch, tmp_path, "print('error: services \"derops-api\" not found')"
    )

    with forwarded(cluster, deadline) as port:
        assert isinstance(port, Missing)
        assert port.why == 'services "derops-api" not found'


def test_a_kubectl_that_forwards_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster, deadline = stand_in(monkeypatch, tmp_path, "import time; time.sleep(600)", 0.5)

    with forwarded(cluster, deadline) as port:
        assert isinstance(port, Missing)
        assert "in time" in port.why


def test_an_answer_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kubectl, "MOST_BYTES", 1000)
    cluster, _ = stand_in(monkeypatch, tmp_path, "while True: print('x' * 100)")

    found = cluster.kubectl.get("/version", "version")

    assert isinstance(found, Missing)
    assert "more than 1000 bytes" in found.why


def test_a_plugin_that_outlives_kubectl_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster, _ = stand_in(
        monkeypatch, tmp_path,
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'], "
        "stdout=subprocess.DEVNULL)\ntime.sleep(600)\n",
        0.5,
    )  # fmt: skip
    began = time.monotonic()

    found = cluster.kubectl.get("/version", "version")

    assert isinstance(found, Missing)
    assert "did not answer" in found.why
    assert time.monotonic() - began < 15


@pytest.fixture
def silence() -> Iterator[str]:
    """Return the URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("command", ["diagnose battery-7", "diagnose", "status"])
def test_an_api_server_that_never_answers_is_not_waited_for(
    silence: str, tmp_path: Path, command: str
) -> None:
    config = kubeconfig(tmp_path, {"token": "x"}, silence)

    done = clusters.run(*command.split(), "-n", "pilot-north", "--timeout=2", kubeconfig=config)

    assert done.code == 4
    assert "did not answer within" in done.out + done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("said", "why", "right"),
    [
        (
            'Error from server (Forbidden): derassets.derops.io "b" is forbidden: User "u" cannot '
            'get resource "derassets" in API group "derops.io" in the namespace "n"\n',
            "you may not get derassets.derops.io in namespace n",
            "get derassets.derops.io in namespace n",
        ),
        (
            'Error from server (Forbidden): pods is forbidden: User "u" cannot list resource '
            '"pods" in API group "" at the cluster scope\n',
            "you may not list pods in all namespaces",
            "list pods in all namespaces",
        ),
        ("error: You must be logged in\n", "You must be logged in", None),
        ("", "kubectl failed without a word", None),
    ],
)
def test_what_kubectl_says_is_understood(said: str, why: str, right: str | None) -> None:
    found = read_failure(said)

    assert found.why == why
    assert (str(found.right) if found.right else None) == right
    assert not found.absent
