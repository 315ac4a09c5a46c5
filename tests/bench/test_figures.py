from __future__ import annotations

import dataclasses
import json

import msgspec
import pytest

from rig.bench.figures import Bound, Figure, Samples, compared, document, exit_code, read, worse
from rig.errors import RequestError

MOST, LEAST = Bound(1.3), Bound(20, at_least=True)


def _figure(value: float | None = 1.0, **more: object) -> Figure:
    return Figure(**{"family": "walk", "name": "a name", "value": value, "unit": "x", "noise": 0.1, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "value", "holds"),
    [
        (MOST, 1.3, True),
        (MOST, 1.31, False),
        (LEAST, 20, True),
        (LEAST, 19.9, False),
        (MOST, None, None),
        (None, 5, None),
        (MOST, float("nan"), False),
        (LEAST, float("nan"), False),
    ],
)
def test_a_bound_holds_or_not(bound: Bound | None, value: float | None, holds: bool | None) -> None:
    assert _figure(value, bound=bound).holds is holds


@pytest.mark.parametrize(
    ("figures", "code"),
    [
        ([_figure(1, bound=MOST), _figure(99)], 0),
        ([_figure(1, bound=MOST), _figure(2, bound=MOST), _figure(None, missing="no memory")], 1),
        ([_figure(1, bound=MOST), _figure(None, bound=MOST, missing="no memory")], 3),
        ([], 3),
    ],
)
def test_exit_code(figures: list[Figure], code: int) -> None:
    assert exit_code(figures) == code


# Of so many samples, how many are left out at each end: the largest K for which 2 * P(fewer than K heads) <= 0.07.
@pytest.mark.parametrize(("count", "left_out"), [(5, 0), (8, 0), (9, 1), (10, 1), (11, 2), (14, 3), (15, 3)])
def test_between_which_samples_the_median_lies(count: int, left_out: int) -> None:
    samples = Samples(tuple(float(value) for value in range(count, 0, -1)))
    assert samples.interval == (1 + left_out, count - left_out)


def test_when_samples_settle_a_bound() -> None:
    assert Samples((1.0,) * 4).interval is None
    assert not Samples((1.0,) * 4).settles(MOST), "four say too little, however alike they are"
    assert Samples((1.0, 1.1, 1.2, 1.25, 1.3)).settles(MOST)
    assert Samples((1.4, 1.5, 1.6, 1.4, 1.5)).settles(MOST)
    assert not Samples((1.0, 1.0, 1.0, 1.0, 1.31)).settles(MOST)
    assert Samples((1.0,) * 8 + (1.31,)).settles(MOST), "of nine the outermost ones say nothing"
    assert Samples((20.0, 21.0, 22.0, 20.0, 25.0)).settles(LEAST)


def test_samples() -> None:
    samples = Samples((2.0, 9.0, 1.0, 3.0, 2.5))
    assert samples.median == 2.5
    assert samples.noise == (3.0 - 2.0) / 2 / 2.5, "the hiccup is not noise"
    assert samples.over(Samples((1.0, 3.0, 1.0, 1.0, 1.0))).values == (2.0, 3.0, 1.0, 3.0, 2.5)
    assert Samples((5.0,)).noise is None
    with pytest.raises(ValueError, match="nothing was measured"):
        Samples(())
    with pytest.raises(ValueError, match="shorter"):
        samples.over(Samples((1.0,)))


def test_json_there_and_back() -> None:
    figures = [
        _figure(1.25, bound=LEAST, guest="pae", beside="cmp"),
        _figure(None, missing="no memory", larger_is_better=True),
    ]
    text = msgspec.json.encode({"schema": 1, **document(figures, {"cpus": 2})})
    assert read(text, "then.json") == figures
    told = json.loads(text)
    assert [one["holds"] for one in told["figures"]] == [False, None]
    assert [one["better"] for one in told["figures"]] == ["more", "more"]
    assert told["machine"] == {"cpus": 2}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "then.json holds no figures of rig bench: "),
        (b"[]", "then.json holds no figures of rig bench: Expected `object`"),
        (b'{"schema": 1}', "missing required field `figures`"),
        (b'{"schema": 2, "figures": []}', "then.json has schema 2, 1 is understood"),
        (b'{"schema": 1, "figures": [{"family": "walk", "name": "n", "unit": "x", "value": "fast"}]}', "figures"),
        (b"\xff\xfe", "holds no figures"),
    ],
)
def test_what_is_no_baseline(text: bytes, told: str) -> None:
    with pytest.raises(RequestError, match=r"then\.json") as raised:
        read(text, "then.json")
    assert told in raised.value.message
    assert "rig bench --json" in raised.value.hint


@pytest.mark.parametrize(
    ("before", "now", "by"),
    [
        (_figure(1.0), _figure(1.3), 0.3),
        (_figure(1.0), _figure(1.2), None),  # 0.1 of 1.0 and 0.1 of 1.2 is 0.22
        (_figure(1.0), _figure(0.5), None),
        (_figure(100, bound=LEAST), _figure(50, bound=LEAST), 0.5),
        (_figure(100, bound=LEAST), _figure(200, bound=LEAST), None),
        (_figure(100, larger_is_better=True), _figure(50, larger_is_better=True), 0.5),
        (_figure(1.0, noise=None), _figure(9.0), None),
        (_figure(1.0), _figure(9.0, noise=None), None),
        (_figure(1.0, guest="pae"), _figure(9.0, guest="x86_64"), None),
        (_figure(None), _figure(9.0), None),
        (_figure(0.0), _figure(9.0), None),
        (_figure(1.0), _figure(None), None),
    ],
)
def test_worse_by_more_than_the_noise(before: Figure, now: Figure, by: float | None) -> None:
    found = worse([before], [now])
    assert [pytest.approx(one.by) for one in found] == ([] if by is None else [by])


def test_the_worst_comes_first_and_how_many_were_compared() -> None:
    before = [_figure(1.0, name="a"), _figure(1.0, name="b"), _figure(1.0, name="gone")]
    now = [_figure(1.5, name="a"), _figure(2.0, name="b"), dataclasses.replace(_figure(9.0), name="new")]
    assert [one.name for one in worse(before, now)] == ["b", "a"]
    assert compared(before, now) == 2
