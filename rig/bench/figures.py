"""What was measured, as data: figures, their bounds, and what got worse since an earlier time. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rig.errors import RequestError

SCHEMA = 1

_DOUBT = 0.07  # of a median's interval: the chance that it lies outside


@dataclass(frozen=True)
class Bound:
    """What a value must be. at_least: as much or more; else as much or less."""

    limit: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """One measured value. noise: half the spread of the samples, as a part of the value; None when there was only one.

    beside: what it was measured beside, in words. missing: why it could not be measured; then `value` is None.
    larger_is_better: of one without a bound; with one the bound says it.
    """

    family: str
    name: str
    value: float | None
    unit: str
    guest: str = ""
    beside: str = ""
    bound: Bound | None = None
    noise: float | None = None
    larger_is_better: bool = False
    missing: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether it keeps its bound; None without one, or when it was not measured."""
        if self.bound is None or self.value is None:
            return None
        return self.bound.holds(self.value)

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for the same figure of another time."""
        return self.family, self.guest, self.name

    @property
    def better_is_more(self) -> bool:
        return self.bound.at_least if self.bound is not None else self.larger_is_better


@dataclass(frozen=True)
class Samples:
    """Several measurements of one thing, in the order in which they were taken."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("nothing was measured")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def noise(self) -> float | None:
        """Half of the distance between the quartiles, as a part of the median; None of a single one.

        The quartiles, for a single hiccup of the machine says nothing about the others.
        """
        if len(self.values) < 2 or not self.median:
            return None
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    @property
    def interval(self) -> tuple[float, float] | None:
        """Between which two samples the median of all that could be taken lies, in at least 93 of 100 cases; None of
        fewer than five.

        Each of them is as likely below that median as above it, however they are spread: how many lie below is what
        throws of a coin come to (the sign test's interval).
        """
        count, ordered = len(self.values), sorted(self.values)
        chances = itertools.accumulate(math.comb(count, below) / 2**count for below in range(count))
        outside = sum(2 * chance <= _DOUBT for chance in chances)
        return (ordered[outside - 1], ordered[-outside]) if outside else None

    def settles(self, bound: Bound) -> bool:
        """Whether so many were taken that more would hardly change whether the median keeps a bound: all of `interval`
        does, or none of it."""
        return self.interval is not None and len({bound.holds(end) for end in self.interval}) == 1

    def over(self, other: Samples) -> Samples:
        """The ratios of pairs that were measured one right after the other."""
        return Samples(tuple(own / their for own, their in zip(self.values, other.values, strict=True)))


def exit_code(figures: Iterable[Figure]) -> int:
    """1: a bound does not hold; 3: none is broken, but one could not be measured; else 0."""
    figures = list(figures)
    if any(figure.holds is False for figure in figures):
        return 1
    return 3 if any(figure.missing for figure in figures) or not figures else 0


# ---------------------------------------------------------------- as JSON, and back


def document(figures: Sequence[Figure], machine: dict[str, Any], worse: Sequence[Worse] = ()) -> dict[str, Any]:
    """What `--json` prints; `read` understands it again. machine: what it was measured on."""
    return {
        "machine": machine,
        "figures": [
            {
                **msgspec.to_builtins(figure),
                "holds": figure.holds,
                "better": "more" if figure.better_is_more else "less",
            }
            for figure in figures
        ],
        "worse": [msgspec.to_builtins(one) for one in worse],
    }


class _Document(msgspec.Struct):
    """Other keys are not looked at."""

    schema: int
    figures: list[Figure]


def read(text: bytes, name: str) -> list[Figure]:
    """The figures of an earlier time. name: of the file, for messages. Raises RequestError for anything else."""
    hint = "give what an earlier `rig bench --json` printed"
    try:
        found = msgspec.json.decode(text, type=_Document)
    except msgspec.DecodeError as problem:
        raise RequestError(f"{name} holds no figures of rig bench: {problem}", hint=hint) from problem
    if found.schema != SCHEMA:
        raise RequestError(f"{name} has schema {found.schema}, {SCHEMA} is understood", hint=hint)
    return found.figures


# ---------------------------------------------------------------- since an earlier time


@dataclass(frozen=True)
class Worse:
    """A figure that got worse by more than the noise of both times. by: as a part of what it was before."""

    family: str
    guest: str
    name: str
    before: float
    now: float
    by: float
    noise: float


def worse(before: Sequence[Figure], now: Sequence[Figure]) -> list[Worse]:
    """What got worse, the worst first. Figures that one of the two lacks, or measured only once, can't be told."""
    earlier = {figure.key: figure for figure in before}
    found = []
    for figure in now:
        old = earlier.get(figure.key)
        if old is None or not old.value or figure.value is None or old.noise is None or figure.noise is None:
            continue
        by = (old.value - figure.value if figure.better_is_more else figure.value - old.value) / old.value
        # The noise of either is a part of its own value.
        noise = old.noise + figure.noise * figure.value / old.value
        if by > noise:
            found.append(Worse(*figure.key, old.value, figure.value, by, noise))
    return sorted(found, key=lambda one: -one.by)


def compared(before: Sequence[Figure], now: Sequence[Figure]) -> int:
    """How many figures both times have with their noise, so that they can be told apart."""
    earlier = {figure.key: figure for figure in before if figure.value and figure.noise is not None}
    return sum(figure.key in earlier and figure.value is not None and figure.noise is not None for figure in now)
