"""``python -m tests.stack up|down|status|serve|demo``, as ``make up`` and its siblings call it."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stack import demo, places
from tests.stack.processes import MARK, StackError
from tests.stack.stack import Stack, write_description

_UP_SECONDS = 1800  # the first time, it builds the control plane
_DOWN_SECONDS = 60


def main() -> int:
    """Run one command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.stack", description=__doc__)
    commands: dict[str, Callable[[Path], int]] = {
        "up": up,
        "down": down,
        "status": status,
        "serve": serve,
        "demo": lambda _: demo.main(),
    }
    parser.add_argument("command", choices=commands)
    parser.add_argument(
        "--state", type=Path, default=places.BUILD, help="directory of stack.json and stack.log"
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        arguments = parser.parse_args()
        return commands[arguments.command](arguments.state.resolve() / "stack.json")
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def up(file: Path) -> int:
    """Start the stack in the background and wait until it is ready."""
    if (state := _read_state(file)) and _is_ours(state["processes"]["supervisor"], state):
        print(f"already up: see {file}")
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    log_file = file.with_suffix(".log")
    file.unlink(missing_ok=True)
    with log_file.open("w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.stack", "serve", "--state", str(file.parent)],
            cwd=places.REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    told, deadline = 0, time.monotonic() + _UP_SECONDS
    while not file.exists():
        time.sleep(0.2)
        told = _tell_news(log_file, told)
        if supervisor.poll() is not None:
            _tell_news(log_file, told)
            raise StackError(f"the stack did not start; its log is {log_file}")
        if time.monotonic() > deadline:
            supervisor.terminate()
            raise StackError(f"the stack is not ready after {_UP_SECONDS} s; its log is {log_file}")
    _tell_news(log_file, told)
    supervisor.returncode = 0  # it lives on by itself; this process does not wait for it
    return status(file)


def serve(file: Path) -> int:
    """Run the stack in the foreground until SIGTERM; keep build/stack.json true."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _interrupt(stop))
    try:
        with Stack(keep_alive=True, say=_say) as stack:
            _started.set()
            written: dict[str, Any] = {}
            while True:
                description = stack.describe()
                description["processes"] = {"supervisor": os.getpid()} | description["processes"]
                if description != written:
                    write_description(file, description)
                    written = description
                if stop.wait(1):
                    return 0
    except KeyboardInterrupt:
        return 1
    finally:
        file.unlink(missing_ok=True)


_started = threading.Event()


def _interrupt(stop: threading.Event) -> None:
    """End the stack; while it is still starting, break that off."""
    stop.set()
    if not _started.is_set():
        raise KeyboardInterrupt


def down(file: Path) -> int:
    """End the stack that ``up`` started."""
    state = _read_state(file)
    if state is None:
        print("not up")
        return 0
    pids = state["processes"]
    if _is_ours(pids["supervisor"], state):
        os.kill(pids["supervisor"], signal.SIGTERM)
        deadline = time.monotonic() + _DOWN_SECONDS
        while _is_ours(pids["supervisor"], state) and time.monotonic() < deadline:
            time.sleep(0.1)
    for name, pid in pids.items():  # what a supervisor that died or hangs has left
        if _is_ours(pid, state):
            print(f"killing {name} ({pid})")
            os.kill(pid, signal.SIGKILL)
    places.remove(Path(state["dataDirectory"]))
    file.unlink(missing_ok=True)
    print("down")
    return 0


def status(file: Path) -> int:
    """Print what runs and how to use it."""
    state = _read_state(file)
    if state is None:
        print("not up; start it with: make up")
        return 1
    for name, pid in state["processes"].items():
        print(f"  {name:<28} {pid:>7}  {'running' if _is_ours(pid, state) else 'gone'}")
    print(f"{file} says the rest; logs are in {state['dataDirectory']}/logs. To look around:\n")
    print(f"  export KUBECONFIG={state['kubeconfig']}")
    print(f"  {state['kubectl']} get dera,dsp -A -o wide\n")
    api = state["api"]
    print(f"  curl --cacert {api['caFile']} {api['url']}/v1/me \\")
    print(f'    -H "Authorization: Bearer $({api["token"]})"\n')
    print("Each DERAsset that you apply gets a simulated device with an agent,")
    print("unless it is annotated derops.io/agent=none. End it with: make down")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _tell_news(log_file: Path, told: int) -> int:
    text = log_file.read_text()
    print(text[told:], end="", flush=True)
    return len(text)


def _read_state(file: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    return state


def _is_ours(pid: int, state: dict[str, Any]) -> bool:
    """Tell whether ``pid`` still is a process of that stack: numbers are used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    if pid == state["processes"]["supervisor"]:
        return b"tests.stack" in command and b"serve" in command
    mark = f"{MARK}={state['dataDirectory']}".encode()
    return any(entry.startswith(mark) for entry in environment)


if __name__ == "__main__":
    sys.exit(main())
