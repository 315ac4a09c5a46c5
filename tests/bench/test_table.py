from __future__ import annotations

import pytest

from rig.bench.figures import Bound, Figure, worse
from rig.bench.table import number, print_table, summary, worse_lines

LEAST = Bound(20, at_least=True)
FIGURES = [
    Figure("memory", "comparison of 512 MiB", 0.212, "x", "", "cmp of two such files in memory", Bound(1.3), 0.07),
    Figure("memory", "capture, compare, hash 4096 MiB", None, "s/GiB", missing="9216 MiB of memory are needed"),
    Figure("walk", "all 75745 translations of an address space: faster", 1432.4, "x", "x86_64", "volatility3", LEAST),
    Figure("walk", "translations, none of them in the same page", 18_818_694.3, "/s", "x86_64", noise=0.011),
    Figure("walk", "translations [not markup]", 19.0, "x", "x86_64", bound=LEAST, noise=0.01),
]


def test_the_table_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(FIGURES)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "comparison of 512 MiB 0.212 x ±7% <= 1.3 holds" in rows
    assert "     beside cmp of two such files in" in [line.rstrip() for line in out.splitlines()]
    assert "walk (x86_64)" in rows
    assert "translations, none of them in the 1.88e+07 /s ±1%" in rows
    assert "figure value noise bound" in rows
    assert "translations [not markup] 19 x ±1% >= 20 BROKEN" in rows
    assert "not measured: 9216 MiB of memory" in rows
    assert rows[-1] == "2 of 3 bounds hold, 1 not measured"


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.2123, "0.212"), (9.999, "10"), (26123.7, "26,124"), (100, "100"), (0, "0"), (18_818_694, "1.88e+07")],
)
def test_numbers(value: float, told: str) -> None:
    assert number(value) == told


def test_what_got_worse() -> None:
    slower = Figure("memory", "comparison of 512 MiB", 0.424, "x", noise=0.01, bound=Bound(1.3))
    found = worse(FIGURES, [slower])
    assert worse_lines(found, 1) == [
        "worse than before by more than the noise: 1 of 1 figures that both times have",
        "  memory: comparison of 512 MiB",
        "    0.212 -> 0.424: 100% worse, noise 9%",
    ]
    assert worse_lines([], 7) == ["nothing got worse by more than the noise, of 7 figures that both times have"]


def test_summary_of_nothing_broken() -> None:
    assert summary(FIGURES[:1]) == "1 of 1 bounds hold"
