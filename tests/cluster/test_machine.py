"""A Docker daemon of ours leaves nothing on the machine, in whatever way it ended.

It is tried in a network of its own, so that daemons and clusters of this machine stay as they are.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.stack import places

_TRIAL = """
import json, os, signal, sys, time
from tests.kind import docker, traces

before = traces.look()
ours = docker.own()
try:
    docker.have()
    for end in sys.argv[1:]:
        os.kill(ours.pid(), signal.SIGKILL)
        while ours.pid() is not None:
            time.sleep(0.1)
        if end == "its number given away":
            ours.pid_file.write_text(str(os.getpid()))
        daemon = docker.have()
        assert docker.answers(daemon.host) and docker.find() == daemon
finally:
    assert docker.stop()
assert not docker.stop()
after = traces.look()
print(json.dumps([before, after, ours.run.exists(), ours.before.exists()]))
"""
_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


@pytest.mark.parametrize("ends", [[], ["killed"], ["its number given away", "killed"]])
def test_our_daemon_leaves_the_machine_as_it_was(ends: list[str], tmp_path: Path) -> None:
    if os.getuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("only root can start a daemon, and it must be installed")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("DOCKER_HOST", None)

    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-c", _TRIAL, *ends],
        cwd=places.REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    before, after, sockets, notes = json.loads(done.stdout.splitlines()[-1])
    assert not sockets
    assert not notes
    assert after["links"] == before["links"]
    assert after["sysctls"] == before["sysctls"]
    for saved in after["firewalls"].values():
        lines = [line for line in saved.splitlines() if line.startswith((":", "-A"))]
        assert {line.split()[0] for line in lines} <= {f":{chain}" for chain in _CHAINS}
        assert not [line for line in lines if "DROP" in line]
