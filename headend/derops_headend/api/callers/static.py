"""Callers with a token of a mounted Secret: for callers without an account of the cluster."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from derops.observability import Readiness
from derops_headend.api.caller import Caller, CallerKind

PREFIX = "drp_"
LONGEST_LIFE = timedelta(days=90)
LOOK_SECONDS = 5.0
"""How often the directory is looked at."""

MOST_FILES, MOST_BYTES = 1_000, 16_384
_PART = "static tokens"
_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOKEN = re.compile(rf"{PREFIX}({_ID.pattern})\.[A-Za-z0-9_-]{{43}}")
_NOBODY = "0" * 64

_Name = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,240}$")]


def _group(name: str) -> str:
    if name.startswith("system:"):
        raise ValueError("a group of Kubernetes itself (system:) cannot be given")
    return name


_Group = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,256}$"), AfterValidator(_group)]


class _File(BaseModel):
    """One key of the Secret."""

    model_config = ConfigDict(extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    user: _Name
    groups: Annotated[list[_Group], Field(max_length=200)] = []
    expires: AwareDatetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _KnownToken:
    sha256: str
    caller: Caller
    expires_at: datetime


class StaticTokens:
    """Finds callers by ``drp_<id>.<43 characters>``; it keeps hashes only."""

    def __init__(
        self, directory: Path | None, readiness: Readiness, now: Callable[[], datetime]
    ) -> None:
        """Without a directory there are none."""
        self._directory, self._readiness, self._now = directory, readiness, now
        self._known: Mapping[str, _KnownToken] = {}

    def caller_of(self, token: str) -> Caller | None:
        """Return whose token it is; None = nobody's, or it is over."""
        form = _TOKEN.fullmatch(token)
        known = self._known.get(form[1]) if form else None
        digest = hashlib.sha256(token.encode()).hexdigest()
        is_right = hmac.compare_digest(digest, known.sha256 if known else _NOBODY)
        if known is None or not is_right or known.expires_at <= self._now():
            return None
        return known.caller

    async def follow(self) -> None:
        """Read files again that change, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the directory; blocks. What is wrong with a file concerns that file alone."""
        if self._directory is None:
            return
        wrong: list[str] = []
        found: dict[str, _KnownToken] = {}
        try:
            files = sorted(each for each in self._directory.iterdir() if each.name[:1] != ".")
        except OSError as error:
            wrong, files = [str(error)], []
        for file in files[:MOST_FILES]:
            try:
                found[file.name] = self._read(file)
            except (OSError, ValueError) as error:
                wrong.append(f"{file.name}: {_why(error)}")
        if len(files) > MOST_FILES:
            wrong.append(f"{len(files)} files, of which the first {MOST_FILES} are read")
        self._known = found
        if wrong:
            self._readiness.degraded(_PART, "; ".join(wrong[:5]))
        else:
            self._readiness.found(_PART)

    def _read(self, file: Path) -> _KnownToken:
        if not _ID.fullmatch(file.name):
            raise ValueError("is no id: lower case letters, digits and hyphens, at most 63")
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"is longer than {MOST_BYTES} bytes")
        read = _File.model_validate_json(content)
        if read.expires > self._now() + LONGEST_LIFE:
            raise ValueError(
                f"expires in more than {LONGEST_LIFE.days} days: make it expire sooner"
            )
        caller = Caller(
            kind=CallerKind.STATIC,
            name=f"static:{read.user}",
            groups=tuple(read.groups),
            token_id=file.name,
            expires_at=read.expires,
        )
        return _KnownToken(sha256=read.sha256, caller=caller, expires_at=read.expires)


def _why(error: OSError | ValueError) -> str:
    """Return what is wrong, without anything that the file holds."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    return str(error)
