"""Runs images as a cluster that allows little would: runc, nothing writable, no rights."""

import json
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An image as a directory, and what it is configured to run."""

    root: Path
    config: dict[str, Any]


def unpack(archive: Path, target: Path) -> Unpacked:
    """Unpack the layers of a docker-archive over each other."""
    target.mkdir(parents=True)
    with tarfile.open(archive) as outer:
        manifest = json.loads(_read(outer, "manifest.json"))[0]
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=outer.extractfile(layer)) as inner:
                inner.extractall(target, filter="fully_trusted")
        return Unpacked(target, json.loads(_read(outer, manifest["Config"]))["config"])


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """How an image is run: with no capability, no new privileges, and no network but its own."""

    image: Unpacked
    user_id: int
    environment: Mapping[str, str] | None = None
    """In place of the image's own; None = that of the image, as a cluster gives it."""
    mounts: Mapping[Path, str] = field(default_factory=dict)
    """Directories of this machine, and where they are in the container."""
    memory_paths: Sequence[str] = ("/tmp",)
    """What can be written, in memory."""

    def run(
        self, *arguments: str, entrypoint: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end and return what was said."""
        with self.start(*arguments, entrypoint=entrypoint) as process:
            try:
                out, err = process.communicate(timeout=TIMEOUT_SECONDS)
            finally:
                process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(self, *arguments: str, entrypoint: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start it and return its process; ending that ends the container."""
        runc = shutil.which("runc", path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin")
        assert runc, "runc is not on PATH: apt-get install runc"
        name = f"derops-{uuid.uuid4().hex[:12]}"
        bundle = self.image.root.with_name(name)
        bundle.mkdir()
        command = [*(entrypoint or self.image.config["Entrypoint"]), *arguments]
        (bundle / "config.json").write_text(json.dumps(self._specification(command)))
        return subprocess.Popen(
            [runc, "run", "--bundle", str(bundle), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _specification(self, command: list[str]) -> dict[str, Any]:
        environment = [f"{name}={value}" for name, value in (self.environment or {}).items()]
        if self.environment is None:
            environment = self.image.config["Env"]
        memory = {"type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": self.user_id, "gid": self.user_id},
                "args": command,
                "env": environment,
                "cwd": "/",
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.image.root), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
                *({"destination": path} | memory for path in ["/dev/shm", *self.memory_paths]),
                *(
                    {"destination": there, "type": "bind", "source": str(here), "options": ["bind"]}
                    for here, there in self.mounts.items()
                ),
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "network")]
            },
        }
