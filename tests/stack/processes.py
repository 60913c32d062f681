"""One process of the stack: start, readiness, end."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Where we speak gRPC ourselves, its fork handlers would fail in each program that we start.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

MARK = "DEROPS_STACK"
"""Environment variable that all processes of a stack carry: the data directory of that stack."""

END_SECONDS = 20
READY_SECONDS = 60


class StackError(Exception):
    """A part of the stack did not start, or did not do what it was asked."""


class Process:
    """A program with its log file. It may be started again after it ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.wanted = False
        """Whether it should be running: a death while wanted is an accident."""
        self._command = [str(part) for part in command]
        self._directory = directory
        self.environment = dict(environment or {})
        self._user = user
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        logs = directory / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        self.log_file = logs / f"{name.replace('/', '_')}.log"

    def use(self, programs: Path) -> None:
        """Run the program of another release, whose commands are in a folder, from now on."""
        self._command[0] = str(programs / Path(self._command[0]).name)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise StackError(f"{self.name} was never started")
        return self._process.pid

    @property
    def started(self) -> bool:
        """Whether it was ever started."""
        return self._process is not None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start without waiting. Settings of derops in our own environment do not leak in.

        What it writes, nobody else may read.
        """
        own = {key: value for key, value in os.environ.items() if not key.startswith("DEROPS_")}
        self.wanted = True
        self.log_file.touch(mode=0o600)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=own | self.environment | {MARK: str(self._directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user else None,
                umask=0o077,
                start_new_session=True,
            )

    def wait_until(
        self, ready: Callable[[], bool], patience_seconds: float = READY_SECONDS
    ) -> None:
        """Wait for ``ready``; a death meanwhile, or a wait too long, is told with the log's end."""
        deadline = time.monotonic() + patience_seconds
        while not ready():
            if not self.alive:
                raise StackError(f"{self.name} ended while starting\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} is not ready after {patience_seconds} s\n{self.log_tail()}"
                )
            time.sleep(0.05)

    def terminate(self) -> int | None:
        """Ask it to end, wait, and return the exit code; kill it when it does not listen."""
        self.wanted = False
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{self.name} ignored its signal for {END_SECONDS} s, killed", flush=True)
            return self.kill()

    def kill(self) -> int | None:
        """End it as a power cut would."""
        self.wanted = False
        if self._process is None:
            return None
        self._process.kill()
        return self._process.wait()

    def log_tail(self, lines: int = 30) -> str:
        text = self.log_file.read_text(errors="replace").splitlines()
        return "\n".join([f"--- {self.log_file}", *text[-lines:]])


def http_ok(url: str) -> Callable[[], bool]:
    """Return a check that ``url`` answers 200."""

    def check() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return check
