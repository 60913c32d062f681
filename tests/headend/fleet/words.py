"""A word of a writer, for tests."""

from dataclasses import replace
from typing import Any

from derops_headend.writing.word import WriterWord

WORD = WriterWord(
    shard=0,
    writer="writer-a",
    committed=10,
    last=10,
    waiting_since_us=0,
    fault=None,
    message="",
    since_us=0,
    left_us=1,
)


def word(**changed: Any) -> WriterWord:
    """Return a word that says that all is well, but for what is changed."""
    return replace(WORD, **changed)
