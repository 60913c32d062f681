"""Callers with a token of the cluster that was made for us."""

import asyncio
import base64
import binascii
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from derops.rates import Rates
from derops_headend.api.cache import Expiring
from derops_headend.api.caller import Caller, CallerKind
from derops_headend.api.callers.bearer import unauthenticated
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.reviews import Reviews
from derops_headend.api.sources import network_of

VALID_SECONDS, INVALID_SECONDS = 30.0, 5.0
"""How long a review of the API server is believed."""

MOST_TOKENS = 10_000
MOST_GROUPS = 200

REVIEWS_PER_SECOND, REVIEWS_AT_ONCE = 20.0, 100.0
"""The most reviews of tokens that were not seen before, for one source."""

_KNOWN_SECONDS = 3600.0
_CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
MOST_NAME_CHARACTERS = 256
"""The most characters of the name of a user and of a group. The status of a Dispatch keeps 512 of
its creator, and its policy takes no more."""

_NAME = re.compile(rf"[\x21-\x7e]{{1,{MOST_NAME_CHARACTERS}}}")

Claims = Mapping[str, Any]


class KubernetesTokens:
    """Finds callers by TokenReview, after checks that cost nothing."""

    def __init__(
        self,
        reviews: Reviews,
        audience: str,
        now_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reviews, self._audience, self._now_seconds = reviews, audience, now_seconds
        self._answers: Expiring[bytes, tuple[Caller | None]] = Expiring(MOST_TOKENS, now_seconds)
        self._good_before: Expiring[bytes, str] = Expiring(MOST_TOKENS, now_seconds)
        self._rates = Rates(per_second=REVIEWS_PER_SECOND, burst=REVIEWS_AT_ONCE)
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._log = structlog.get_logger("callers")

    async def caller_of(self, token: str, source: str) -> Caller | None:
        """Return whose token it is; None = nobody's who may come in.

        Args:
            token: The token as it was sent.
            source: The client's address.

        Raises:
            ProblemError: UNAUTHENTICATED, where the token itself shows why; KUBERNETES_UNAVAILABLE;
                TOO_MANY_REQUESTS: too many new tokens.
        """
        key = hashlib.sha256(token.encode()).digest()
        known = self._answers.get(key)
        if known is not None and known[0] is not None:
            return known[0]
        claims = read_claims(token)
        if known is None and self._may_be_ours(claims):
            caller = await self._ask(token, key, claims, source)
            if caller is not None:
                return caller
        check_claims(claims, self._audience, datetime.now(UTC))
        return None

    async def _ask(self, token: str, key: bytes, claims: Claims, source: str) -> Caller | None:
        """Have a token reviewed; calls with the same token share one review."""
        task = self._asking.get(key)
        if task is None:
            network = network_of(source)
            self._check_rate(key, network)
            task = asyncio.create_task(self._review(token, key, claims, network))
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    def _may_be_ours(self, claims: Claims) -> bool:
        if not _is_for(self._audience, claims):
            return False
        issuer = self._reviews.issuer
        return not issuer or claims.get("iss") == issuer

    def _check_rate(self, key: bytes, network: str) -> None:
        """Bound how many new tokens of a source are reviewed; a token that was good is not new."""
        if self._good_before.get(key) is not None:
            return
        if self._rates.admit(network, self._now_seconds()) is None:
            raise ProblemError(
                Slug.TOO_MANY_REQUESTS,
                "Too many tokens that were not seen before come from your address",
                retry_after_seconds=1,
            )

    async def _review(self, token: str, key: bytes, claims: Claims, network: str) -> Caller | None:
        share = self._good_before.get(key)
        status = await self._reviews.review_token(token, self._audience, network, share)
        caller = caller_of_review(status, self._audience, claims)
        if caller is None:
            if status.get("authenticated") is True:
                self._log.warning("caller.refused", why=_why_refused(status, self._audience))
            self._answers.put(key, (None,), INVALID_SECONDS)
            return None
        self._good_before.put(key, caller.share, _KNOWN_SECONDS)
        self._answers.put(key, (caller,), _believed_seconds(caller))
        return caller


def read_claims(token: str) -> Claims:
    """Return the claims of a JWT, whoever wrote them; none where it is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        body = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(body)
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def check_claims(claims: Claims, audience: str, now: datetime) -> None:
    """Say what is wrong with a token that was refused, as far as it can be read in it.

    Raises:
        ProblemError: UNAUTHENTICATED: it was made for another audience, or is over.
    """
    if claims and not _is_for(audience, claims):
        detail = f"was made for another audience: make one for {audience}"
        raise unauthenticated("audience", detail)
    expiry = _moment(claims.get("exp"))
    if expiry is not None and expiry <= now:
        raise unauthenticated("expired", "is over: make a new one")


def _is_for(audience: str, claims: Claims) -> bool:
    audiences = claims.get("aud")
    return audience in (audiences if isinstance(audiences, list) else [audiences])


def caller_of_review(status: Claims, audience: str, claims: Claims) -> Caller | None:
    """Return the caller that a TokenReview's status names; None = nobody who is let in.

    Args:
        status: The status of the TokenReview.
        audience: The API's; the answer must name it, as not every authenticator knows audiences.
        claims: The claims of the token that was reviewed.
    """
    if status.get("authenticated") is not True or audience not in (status.get("audiences") or []):
        return None
    user = status.get("user") or {}
    name, groups = str(user.get("username", "")), user.get("groups") or []
    if _why_unusable(name, groups):
        return None
    extra = {str(key): tuple(map(str, values)) for key, values in (user.get("extra") or {}).items()}
    return Caller(
        kind=CallerKind.KUBERNETES,
        name=name,
        uid=str(user.get("uid") or ""),
        groups=tuple(groups),
        extra=extra,
        token_id=next(iter(extra.get(_CREDENTIAL_ID, ())), ""),
        expires_at=_moment(claims.get("exp")),
    )


def _why_refused(status: Claims, audience: str) -> str:
    """Return why a user whom the cluster knows is not let in."""
    if audience not in (status.get("audiences") or []):
        return f"the API server does not say that the token is for the audience {audience}"
    user = status.get("user") or {}
    return _why_unusable(str(user.get("username", "")), user.get("groups") or [])


def _why_unusable(name: str, groups: Sequence[object]) -> str:
    """Return why audit and annotations cannot have a name; empty = they can."""
    if len(groups) > MOST_GROUPS:
        return f"its user has {len(groups)} groups, of {MOST_GROUPS} at most"
    odd = next((each for each in (name, *groups) if not _is_name(each)), None)
    if odd is None:
        return ""
    return (
        f"the name {str(odd)[:64]!r} of its user or of a group is not of 1 to "
        f"{MOST_NAME_CHARACTERS} visible ASCII characters, but of {len(str(odd))}: map the claim "
        "to another name in the API server's authentication"
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _moment(seconds: object) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int) else None
    except (OverflowError, ValueError, OSError):
        return None


def _believed_seconds(caller: Caller) -> float:
    if caller.expires_at is None:
        return VALID_SECONDS
    return min(VALID_SECONDS, caller.expires_at.timestamp() - time.time())
