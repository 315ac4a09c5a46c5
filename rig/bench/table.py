"""The figures for people, 80 columns wide (pure, but for the console they are printed to)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from rig.bench.figures import Figure, Worse
from rig.screen import Screen

WIDTH = 80  # columns, of which the names have
NAME = 37
HOLDS = {True: ("holds", "green"), False: ("BROKEN", "bold red"), None: ("", "")}


def table(figures: Sequence[Figure]) -> Table:
    """One row a figure, what it stands beside below its name."""
    out = Table(box=box.SIMPLE_HEAD, width=WIDTH, pad_edge=False, padding=(0, 1))
    out.add_column("figure", width=NAME)
    for title in ("value", "noise", "bound"):
        out.add_column(title, justify="right", no_wrap=True, min_width=len(title))
    out.add_column("", no_wrap=True, min_width=6)
    for (family, guest), group in groupby(figures, key=lambda figure: (figure.family, figure.guest)):
        out.add_row(Text(f"{family} ({guest})" if guest else family, style="bold"))
        for figure in group:
            out.add_row(*_cells(figure))
    return out


def _cells(figure: Figure) -> tuple[Text, ...]:
    name = Text("\n").join(
        [
            *_wrapped(figure.name, "  ", ""),
            *_wrapped(f"beside {figure.beside}" if figure.beside else "", "    ", "dim"),
            *_wrapped(f"not measured: {figure.missing}" if figure.missing else "", "    ", "bold yellow"),
        ]
    )
    word, style = HOLDS[figure.holds]
    return (
        name,
        Text("-" if figure.value is None else f"{number(figure.value)} {figure.unit}"),
        Text("" if figure.noise is None else f"±{figure.noise:.0%}", style="dim"),
        Text("" if figure.bound is None else str(figure.bound)),
        Text(word, style=style),
    )


def _wrapped(text: str, indent: str, style: str) -> list[Text]:
    lines = textwrap.wrap(text, NAME, initial_indent=indent, subsequent_indent=f"{indent}  ")
    return [Text(line, style=style) for line in lines]


def number(value: float) -> str:
    """Three digits that count; more of what is between a hundred and a million."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def summary(figures: Sequence[Figure]) -> str:
    """How many bounds hold, in one line."""
    held = sum(figure.holds is True for figure in figures)
    broken = sum(figure.holds is False for figure in figures)
    missing = sum(bool(figure.missing) for figure in figures)
    parts = [f"{held} of {held + broken} bounds hold"]
    if missing:
        parts.append(f"{missing} not measured")
    return ", ".join(parts)


def worse_lines(found: Sequence[Worse], compared: int) -> list[str]:
    """What got worse since an earlier time. compared: of how many figures that could be told."""
    if not found:
        return [f"nothing got worse by more than the noise, of {compared} figures that both times have"]
    out = [f"worse than before by more than the noise: {len(found)} of {compared} figures that both times have"]
    for one in found:
        where = f"{one.family} ({one.guest})" if one.guest else one.family
        out.append(f"  {where}: {one.name}")
        out.append(f"    {number(one.before)} -> {number(one.now)}: {one.by:.0%} worse, noise {one.noise:.0%}")
    return out


def print_table(figures: Sequence[Figure]) -> None:
    console = Screen(highlight=False, width=WIDTH)
    console.print(table(figures))
    console.print(summary(figures))
