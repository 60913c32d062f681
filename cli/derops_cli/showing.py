"""Blocks on a terminal, by rich, or as plain text; never a colour where no terminal is."""

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TextIO

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from derops_cli.pages import Block, Heading, Lines, Table, Tone

_STYLES = {Tone.PLAIN: "", Tone.GOOD: "green", Tone.BAD: "bold red", Tone.DIM: "dim"}
_GAP = "  "
_WIDEST_CELL = 100


def show(blocks: Sequence[Block], stream: TextIO | None = None) -> None:
    """Show blocks on a stream, as that stream can."""
    stream = sys.stdout if stream is None else stream
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        _show_on_terminal(blocks, Console(file=stream, highlight=False, markup=False, emoji=False))
    else:
        stream.write(plain(blocks))


def plain(blocks: Iterable[Block]) -> str:
    """Return blocks as plain text; each line is as long as it is."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, _):
                parts.append(text)
            case Lines(lines):
                parts.append("\n".join(lines))
            case Table(columns, rows):
                parts.append(_plain_table(columns, [cells for _, cells in rows]))
    return "\n\n".join(parts) + "\n"


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose cells are wrapped where they are long, and not cut off."""
    lines = [tuple(columns), *(line for row in rows for line in _wrap(row))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _wrap(row: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the lines that a row takes."""
    cells = [textwrap.wrap(cell, _WIDEST_CELL) or [""] for cell in row]
    yield from zip_longest(*cells, fillvalue="")


def _show_on_terminal(blocks: Iterable[Block], console: Console) -> None:
    for index, block in enumerate(blocks):
        if index:
            console.print()
        match block:
            case Heading(text, tone):
                console.print(Text(text, style=_STYLES[tone] or "bold"))
            case Lines(lines):
                for line in lines:
                    console.print(Text(line), soft_wrap=True)
            case Table(columns, rows):
                console.print(_rich_table(columns, rows))


def _rich_table(columns: Sequence[str], rows: Iterable[tuple[Tone, tuple[str, ...]]]) -> RichTable:
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for tone, cells in rows:
        table.add_row(*(Text(cell) for cell in cells), style=_STYLES[tone])
    return table
