"""The Docker daemon that clusters run on: the one of this machine, or one of our own.

Ours has its data in the cache, its sockets and its pid file in a directory of ``/run``, and changes
of the machine only what ``traces`` takes back when it ends.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kind import traces
from tests.kind.errors import ClusterError, NoDaemonError
from tests.kind.shell import run, succeeds
from tests.stack import places

FILES = Path(__file__).parent / "files"

_START_SECONDS = 60
_END_SECONDS = 60
_CONTAINERD_SECONDS = 10
_SYS_RESOURCE = 24
_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_CONTAINER = re.compile(r"\bdocker[/-]([0-9a-f]{64})\b")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PACKAGES = ("docker.io", "iptables")


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that answers."""

    host: str | None
    """What DOCKER_HOST must be for it; None = what the client takes by itself."""
    own: bool
    """Whether we started it, and may end it."""

    def environment(self) -> dict[str, str]:
        """Return what a program needs in its environment to use it."""
        return {"DOCKER_HOST": self.host} if self.host else {}

    def docker(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run the client and return what it printed."""
        return run(["docker", *arguments], environment=self.environment(), stdin=stdin)

    def succeeds(self, *arguments: str) -> bool:
        """Tell whether the client ends well."""
        return succeeds(["docker", *arguments], environment=self.environment())


@dataclass(frozen=True, slots=True)
class OwnDaemon:
    """Where the daemon of ours has its things."""

    data: Path
    run: Path
    """Gone after a restart of the machine, as the daemon is."""

    @property
    def host(self) -> str:
        return f"unix://{self.run}/docker.sock"

    @property
    def pid_file(self) -> Path:
        return self.run / "docker.pid"

    @property
    def before(self) -> Path:
        """What the machine was like before the daemon; of use until the machine restarts."""
        return self.data.parent / f"before-{_BOOT_ID.read_text().strip()}.json"

    @property
    def log(self) -> Path:
        return self.data.parent / "docker.log"

    def command(self, runtime: Path | None) -> list[str]:
        """Return how it is started."""
        command = [
            "dockerd",
            f"--data-root={self.data}",
            f"--exec-root={self.run}/exec",
            f"--pidfile={self.pid_file}",
            f"--host={self.host}",
        ]
        if runtime:
            command += [f"--add-runtime=derops={runtime}", "--default-runtime=derops"]
        return command

    def pid(self) -> int | None:
        """Return the process of the daemon; a number that somebody else has by now is none."""
        try:
            pid = int(self.pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if is_daemon(command, self.data) else None


def is_daemon(command: list[bytes], data: Path) -> bool:
    """Tell whether a command line is that of the daemon with its data there."""
    return f"--data-root={data}".encode() in command


def own() -> OwnDaemon:
    """Return where our daemon has its things: one for each cache."""
    data = places.cache() / "docker" / "root"
    # Paths of sockets must be short.
    name = hashlib.sha256(str(data).encode()).hexdigest()[:8]
    return OwnDaemon(data=data, run=Path("/run") / f"derops-{name}")


def find() -> Daemon | None:
    """Return a daemon that answers already."""
    ours = own()
    host = os.environ.get("DOCKER_HOST")
    if host and host != ours.host:
        if answers(host):
            return Daemon(host=host, own=False)
        raise NoDaemonError(
            f"DOCKER_HOST is {host}, and no daemon answers there: start it, or unset DOCKER_HOST"
        )
    if shutil.which("docker") is None:
        return None
    if host is None and answers(None):
        return Daemon(host=None, own=False)
    return Daemon(host=ours.host, own=True) if answers(ours.host) else None


def answers(host: str | None) -> bool:
    """Tell whether a daemon answers there."""
    return succeeds(
        ["docker", "version", "--format={{.Server.Version}}"],
        environment={"DOCKER_HOST": host} if host else {},
        timeout_seconds=20,
    )


def have() -> Daemon:
    """Return a daemon; start our own where this machine has none.

    Raises:
        NoDaemonError: None can start here; the text says why.
    """
    if daemon := find():
        print(f"docker: the daemon at {daemon.host or 'its usual place'}", flush=True)
        return daemon
    _install()
    if daemon := find():  # the package may have started its own
        return daemon
    return _start()


def wake() -> Daemon | None:
    """Start our own daemon where it ended without us and left clusters, to end them; else None."""
    containers = own().data / "containers"
    return _start() if containers.is_dir() and any(containers.iterdir()) else None


def _install() -> None:
    missing = [each for each in ("docker", "dockerd", "iptables") if shutil.which(each) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.getuid() != 0:
        raise NoDaemonError(
            f"no Docker daemon answers, and {', '.join(missing)} is not on PATH:"
            " install Docker and start it, or set DOCKER_HOST"
        )
    print(f"installing {' '.join(_PACKAGES)} from Debian's packages", flush=True)
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=600"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run([*apt, "update", "-q"], environment=quiet)
    run([*apt, "install", "-qy", "--no-install-recommends", *_PACKAGES], environment=quiet)


def _start() -> Daemon:
    if os.getuid() != 0:
        raise NoDaemonError(
            "no Docker daemon answers, and only root can start one:"
            " start Docker, or set DOCKER_HOST"
        )
    if lacking := [each for each, number in _NEEDED.items() if not has_capability(number)]:
        raise NoDaemonError(
            f"no Docker daemon can start on this machine: root lacks {' and '.join(lacking)} here,"
            " as in a container that is not privileged; set DOCKER_HOST to a daemon outside"
        )
    ours = own()
    ours.data.mkdir(parents=True, exist_ok=True)
    ours.run.mkdir(mode=0o711, exist_ok=True)
    if ours.pid() is None:
        ours.pid_file.unlink(missing_ok=True)  # else dockerd takes whoever has the number for one
        if not ours.before.exists():  # of a daemon that was killed: its traces are there still
            ours.before.write_text(json.dumps(traces.look()))
        traces.raise_limits()
        _end_containerd(ours)
        _launch(ours)
    return Daemon(host=ours.host, own=True)


def _launch(ours: OwnDaemon) -> None:
    runtime = FILES / "runc-without-sys-resource"
    copy = ours.data.parent / runtime.name  # a checkout may go while the daemon runs
    shutil.copy(runtime, copy)
    print(f"docker: starting a daemon of our own, data in {ours.data}", flush=True)
    with ours.log.open("wb") as log:
        process = subprocess.Popen(
            ours.command(None if has_capability(_SYS_RESOURCE) else copy),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    while not answers(ours.host):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            take_back(ours)
            raise NoDaemonError(
                f"no Docker daemon can start on this machine: {reason(ours.log.read_text())}"
                f" (all of it: {ours.log})"
            )
        time.sleep(0.2)
    process.returncode = 0  # it lives on by itself; this process does not wait for it


def reason(log: str) -> str:
    """Return the line of the daemon's log that says why it ended."""
    lines = [line for line in log.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith("failed to start daemon")]
    fatal = [line for line in lines if "level=fatal" in line or "level=error" in line]
    return (failed or fatal or lines or ["it says nothing"])[-1]


def has_capability(number: int) -> bool:
    """Tell whether this process may get the capability with that number."""
    status = Path("/proc/self/status").read_text()
    bounds = next(line for line in status.splitlines() if line.startswith("CapBnd:"))
    return bool(int(bounds.split()[1], 16) >> number & 1)


def stop() -> bool:
    """End our own daemon and take back what it changed; tell whether there was anything to do.

    Raises:
        ClusterError: Containers still run on it.
    """
    ours = own()
    if ours.pid() is None and not ours.run.exists():
        return False
    if (pid := ours.pid()) is not None:
        _refuse_in_use(Daemon(ours.host, own=True))
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        while ours.pid() is not None:
            if time.monotonic() > deadline:
                print(f"dockerd ({pid}) ignored SIGTERM for {_END_SECONDS} s: killed", flush=True)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.1)
    take_back(ours)
    return True


def _refuse_in_use(daemon: Daemon) -> None:
    """Refuse to end a daemon that containers run on; those of a killed build are nobody's."""
    names = daemon.docker("ps", "--format={{.Names}}").split()
    if builds := [name for name in names if name.startswith("kind-build-")]:
        daemon.docker("rm", "--force", "--volumes", *builds)
    if others := sorted(set(names) - set(builds)):
        raise ClusterError(f"the Docker daemon stays: {', '.join(others)} run on it")


def take_back(ours: OwnDaemon) -> None:
    """Take back what the daemon changed of the machine."""
    for pid in _left(ours):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        traces.take_back(json.loads(ours.before.read_text()))
    traces.unmount_below(ours.run, ours.data)
    shutil.rmtree(ours.run, ignore_errors=True)
    for before in ours.data.parent.glob("before-*.json"):
        before.unlink()


def _left(ours: OwnDaemon) -> Iterator[int]:
    """Yield what a killed daemon left: containerd, its shims, and all that ran in containers."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            groups = (entry / "cgroup").read_text()
            if f"{ours.run}/exec".encode() in command or any(
                (ours.data / "containers" / container).exists()
                for container in _CONTAINER.findall(groups)
            ):
                yield int(entry.name)


def _end_containerd(ours: OwnDaemon) -> None:
    """End the containerd of a killed daemon: the next one takes it for its own and waits in vain.

    Its shims live on, and the next one finds the containers by them.
    """
    file = ours.run / "exec" / "containerd" / "containerd.pid"
    try:
        pid = int(file.read_text())
    except (OSError, ValueError):
        return

    def lives() -> bool:  # a dead one that nobody has waited for has no command line
        try:
            return f"{ours.run}/exec".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    for end in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _CONTAINERD_SECONDS
        with contextlib.suppress(ProcessLookupError):
            if lives():
                os.kill(pid, end)
        while lives() and time.monotonic() < deadline:
            time.sleep(0.1)
    file.unlink(missing_ok=True)
