"""The pilot guide as a reader would type it: its blocks, and the names at its top."""

import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from tests.stack import places

PAGE = places.REPOSITORY / "docs" / "pilot-guide.md"
LEFT_OUT = ("# instead of", "# not tested")
"""How a block begins that the test of the page does not run."""

SITE = "# at the site"
"""How a block begins that is typed on the machine at the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of commands."""

    line: int
    """Where it begins in the page, from 1."""

    text: str
    answer: str | None
    """What it has to print, where the page says so."""

    @property
    def is_run(self) -> bool:
        """Tell whether the test of the page runs it."""
        return not self.text.startswith(LEFT_OUT)

    @property
    def is_at_the_site(self) -> bool:
        """Tell whether it is typed on the machine at the site."""
        return self.text.startswith(SITE)


def blocks(page: Path = PAGE) -> list[Block]:
    """Return the blocks of commands in their order; the first one exports the names."""
    fences = list(
        re.finditer(
            r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
    )
    found = []
    for fence, following in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] == "sh":
            told = following is not None and following[1] == "text"
            found.append(
                Block(
                    line=fence.string.count("\n", 0, fence.start()) + 2,
                    text=fence[2],
                    answer=following[2] if following is not None and told else None,
                )
            )
    return found


def names() -> dict[str, str]:
    """Return the names at the top of the page with the values that stand there."""
    exports = re.findall(r"^export (\w+)=(\S+)", blocks()[0].text, re.MULTILINE)
    return dict(exports)


def with_names(text: str, values: dict[str, str]) -> str:
    """Return the block of names with other values.

    Raises:
        KeyError: A value is for a name that the page does not have.
    """
    for name, value in values.items():
        text, count = re.subn(
            rf"^export {name}=\S+", f"export {name}={value}", text, flags=re.MULTILINE
        )
        if not count:
            raise KeyError(name)
    return text


def manifests(block: Block) -> list[str]:
    """Return the documents that a block gives to kubectl, its names filled in."""
    found = re.findall(r"^kubectl apply [^\n]*<<YAML\n(.*?)^YAML$", block.text, re.M | re.S)
    return [Template(each).substitute(names()) for each in found]


def file_of(block: Block, name: str) -> str | None:
    """Return what a block writes into a file, its names filled in; None = it writes no such."""
    found = re.search(rf"^cat > {re.escape(name)} <<YAML\n(.*?)^YAML$", block.text, re.M | re.S)
    return Template(found[1]).substitute(names()) if found else None
