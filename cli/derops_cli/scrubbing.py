"""Secrets taken out of text that somebody else wrote. Pure.

Text is scrubbed although only fields of an allow-list are shown: a message may repeat a URL with
a password, or the header of a request.
"""

import re

MASK = "[scrubbed]"

_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
_USERINFO = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@]*@")
_HEADER = re.compile(
    r"(?i)\b((?:proxy-)?authorization\s*[:=]\s*|bearer\s+|basic\s+)[^\s,;]+(\s+[^\s,;]+)?"
)
_NAMED = re.compile(
    r"(?i)((?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|credentials?)[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&]+)"
)
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?")
_STATIC = re.compile(r"\bdrp_[^\s,;]+")
_RUN = re.compile(r"[A-Za-z0-9+/_=-]{24,}")


def scrub(text: str) -> str:
    """Return a text without what looks like a secret.

    Passwords in URLs, headers and settings, tokens, keys in PEM, and long runs of mixed letters
    and digits. Names, UUIDs and hexadecimal numbers stay.
    """
    text = _PEM.sub(MASK, text)
    text = _USERINFO.sub(rf"\1{MASK}@", text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    text = _NAMED.sub(rf"\1{MASK}", text)
    text = _JWT.sub(MASK, text)
    text = _STATIC.sub(MASK, text)
    return _RUN.sub(lambda found: MASK if _random(found[0]) else found[0], text)


def _random(run: str) -> bool:
    return bool(re.search("[a-z]", run) and re.search("[A-Z]", run) and re.search("[0-9]", run))
