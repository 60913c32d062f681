"""What a simulated device has on disk: its state, and its own account of what it was told.

Both outlive kill -9 of the agent as a real device would. The state decides; an entry that a crash
kept out of the account is added at the next opening.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

import structlog

ROTATE_BYTES = 1024 * 1024
"""Size at which the account moves to ``<name>.writes.jsonl.1``, in place of an older one."""


class DeviceFiles:
    """The files of one device; ``save`` may be called from any thread."""

    def __init__(self, state_file: Path) -> None:
        self.state_file = state_file
        self.account = state_file.with_name(f"{state_file.stem}.writes.jsonl")
        self._old = self.account.with_name(self.account.name + ".1")
        self._lock = threading.Lock()
        self._saved = -1
        self._log = structlog.get_logger("simulated")

    def load(self) -> dict[str, Any] | None:
        """Return the stored state; None if there is none, or none that can be read."""
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        self._mend_account()
        try:
            found = json.loads(self.state_file.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.set_aside("is not JSON")
            return None
        return found

    def set_aside(self, problem: str) -> None:
        """Keep a state that cannot be used under another name; the device begins anew."""
        aside = self.state_file.with_name(self.state_file.name + ".damaged")
        self.state_file.replace(aside)
        self._log.warning("state.set_aside", file=str(aside), why=problem)

    def save(
        self,
        order: int,
        state: dict[str, Any],
        entry: dict[str, Any] | None = None,
        *,
        durable: bool,
    ) -> None:
        """Store a state, and after it the entry of the write that led to it.

        Args:
            order: Grows from call to call; a state that was overtaken is not stored.
            state: The whole state.
            entry: For the account; None if nothing was written to the device.
            durable: Whether it shall outlive the machine as well, not only the process.
        """
        with self._lock:
            if order > self._saved:
                self._saved = order
                self._replace(json.dumps(state).encode(), durable=durable)
            if entry is not None:
                self._append(entry)

    def last_entry(self) -> dict[str, Any] | None:
        """Return the newest entry of the account."""
        for file in (self.account, self._old):
            if file.exists():
                lines = file.read_bytes().splitlines()
                if lines:
                    entry: dict[str, Any] = json.loads(lines[-1])
                    return entry
        return None

    def _replace(self, content: bytes, *, durable: bool) -> None:
        new = self.state_file.with_name(self.state_file.name + ".new")
        with new.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        new.replace(self.state_file)
        if durable:
            folder = os.open(self.state_file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        if self.account.stat().st_size + len(line) > ROTATE_BYTES:
            self.account.replace(self._old)
        with self.account.open("ab", buffering=0) as stream:
            stream.write(line)

    def _mend_account(self) -> None:
        """Make sure that there is an account and that it ends with a whole line."""
        with self.account.open("ab+") as stream:
            stream.seek(0)
            content = stream.read()
            if content and not content.endswith(b"\n"):
                stream.truncate(content.rfind(b"\n") + 1)
