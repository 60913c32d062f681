"""What a field stands on: servers, a disk, settings."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.faults import Setting
from tests.stack.nats import NatsServer
from tests.stack.postgres import PostgresServer

SMALL_LOG = {"DEROPS_GATEWAY_LOG_MAX_BYTES": str(2 * 1024**2)}
DISK_MIB = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a field stands on."""

    directory: Path
    server: PostgresServer
    senders: int
    agents: int = 0
    nats: NatsServer | None = None
    disk: Path | None = None
    """Where the gateway's data lie, if not in ``directory``."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, str]:
        """Return the environment of gateway and writer."""
        settings = {"DEROPS_GATEWAY_HEARTBEAT_SECONDS": "1", **self.environment}
        if self.nats is not None:
            settings |= {
                f"DEROPS_{part}_EVENT_LOG": self.nats.url for part in ("GATEWAY", "WRITER")
            }
        return settings

    def has(self, setting: Setting) -> bool:
        """Return whether a fault that needs the setting can happen here."""
        return {
            Setting.ANY: True,
            Setting.NATS: self.nats is not None,
            Setting.SMALL_LOG: self.environment.keys() >= SMALL_LOG.keys(),
            Setting.SMALL_DISK: self.disk is not None,
            Setting.STRACE: self.nats is None and shutil.which("strace") is not None,
        }[setting]


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Yield a directory with a small file system of its own."""
    disk = directory / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)]
    subprocess.run(command, check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no byte free on a disk until the block ends."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for _ in range(DISK_MIB * 1024):
                file.write(bytes(1024))
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def failing_syncs(pid: int, directory: Path) -> Iterator[None]:
    """Let all that a process asks its disk to keep fail, until the block ends."""
    calls = "fsync,fdatasync"
    command = ["strace", "-f", "-p", str(pid), "-o", str(directory / "strace.log")]
    command += ["-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO"]
    tracing = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        tracing.terminate()
        tracing.wait()
