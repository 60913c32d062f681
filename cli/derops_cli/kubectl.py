"""Calls of the ``kubectl`` on PATH, with the caller's own flags and so with the caller's rights.

What is read is read by path (``kubectl get --raw``): that needs no discovery of kinds, and answers
as the API server does.
"""

import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from derops_cli.deadline import Deadline
from derops_cli.errors import CannotLookError
from derops_cli.evidence import Missing, Right
from derops_cli.words import clean

MOST_BYTES = 256 * 1024**2
"""The most bytes of one answer that are read; whoever writes objects chooses their size."""

_MOST_SAID = 64 * 1024
_FORBIDDEN = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"(?: in API group "(?P<group>[^"]*)")?'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_DATE = re.compile(r"\bDate: +([A-Z][a-z]{2}, [^\n]*GMT)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The flags of kubectl that our commands take as well, by their names."""

    context: str | None = None
    kubeconfig: str | None = None
    cluster: str | None = None
    user: str | None = None
    as_: str | None = None
    as_group: tuple[str, ...] = ()

    def words(self) -> tuple[str, ...]:
        """Return them as arguments."""
        found: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            name = "--" + field.name.strip("_").replace("_", "-")
            values = (value,) if isinstance(value, str) else value or ()
            found += [f"{name}={each}" for each in values]
        return tuple(found)


class _Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Kubectl:
    """kubectl as the caller would run it; may be used by several threads."""

    def __init__(self, flags: Flags, deadline: Deadline) -> None:
        self._deadline = deadline
        self._flags = flags.words()
        program = shutil.which("kubectl")
        if program is None:
            raise CannotLookError("there is no kubectl on PATH: install it first")
        self.program = program

    def get(self, path: str, what: str, **parameters: str) -> dict[str, Any] | Missing:
        """Return what the API server has at a path.

        Args:
            path: Of the API, such as ``/api/v1/pods``.
            what: The name of it for people.
            parameters: Of the query.
        """
        query = f"?{urlencode(parameters)}" if parameters else ""
        done = self.run("get", "--raw", path + query)
        if isinstance(done, Missing):
            return Missing(what, done.why, done.right, done.absent)
        try:
            found = json.loads(done)
        except ValueError:
            return Missing(what, "the API server's answer is no JSON")
        return found if isinstance(found, dict) else Missing(what, "the answer is no object")

    def default_namespace(self) -> str:
        """Return the namespace of the caller's context.

        Raises:
            CannotLookError: The kubeconfig is of no use.
        """
        done = self.run("config", "view", "--minify", "-o", "jsonpath={..namespace}")
        if isinstance(done, Missing):
            raise CannotLookError(done.why)
        return (done.split() or ["default"])[0]

    def clock_ahead_seconds(self, now: datetime) -> float | None:
        """Return how far a clock is ahead of the API server's; None = it does not say.

        Args:
            now: By the clock, just before this call.
        """
        done = self._complete(("get", "--raw", "/version", "-v=8"))
        if isinstance(done, Missing):
            return None
        found = _DATE.search(done.stderr)
        try:
            return (now - parsedate_to_datetime(found[1])).total_seconds() if found else None
        except ValueError:
            return None

    def run(self, *arguments: str) -> str | Missing:
        """Run a command and return what it printed."""
        done = self._complete(arguments)
        if isinstance(done, Missing):
            return done
        if done.returncode:
            return read_failure(done.stderr)
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that lasts; whoever asked for it ends it."""
        return subprocess.Popen(  # noqa: S603  # kubectl, without a shell
            [self.program, *self._flags, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _complete(self, arguments: Sequence[str]) -> "_Done | Missing":
        """Run a command to its end, which is the deadline at the latest."""
        seconds = self._deadline.left()
        late = threading.Event()
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(  # noqa: S603  # kubectl, without a shell
                    [self.program, *self._flags, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,  # no pipe: a plugin that outlives kubectl could keep one open
                )
            except OSError as error:
                return Missing("", f"kubectl cannot be run: {error}")

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(seconds, end)
            timer.start()
            with process:
                output = process.stdout.read(MOST_BYTES + 1) if process.stdout else b""
                if len(output) > MOST_BYTES:
                    process.kill()
            timer.cancel()
            errors.seek(0)
            said = errors.read(_MOST_SAID).decode(errors="replace")
        if late.is_set():
            return Missing("", f"kubectl did not answer within {seconds:.1f} s")
        if len(output) > MOST_BYTES:
            return Missing("", f"the answer has more than {MOST_BYTES} bytes")
        return _Done(process.returncode, output.decode(errors="replace"), said)


def read_failure(said: str) -> Missing:
    """Return why kubectl failed, and which right is missing if that is why."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("I")]
    why = clean(lines[-1].removeprefix("error: ") if lines else "kubectl failed without a word")
    if "(NotFound)" in why:
        return Missing("", why.removeprefix("Error from server (NotFound): "), absent=True)
    found = _FORBIDDEN.search(why)
    if found is None:
        return Missing("", why)
    group = f".{found['group']}" if found["group"] else ""
    right = Right(found["verb"], found["resource"] + group, found["namespace"] or "")
    return Missing("", f"you may not {right}", right)


def items_of(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the items of a list that the API server answered; none where it is no list."""
    found = answer.get("items")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def utc_now() -> datetime:
    """Return now by this machine's clock."""
    return datetime.now(UTC)
