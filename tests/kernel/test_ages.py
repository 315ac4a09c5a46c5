"""Releases and the bounds they are compared with."""

from __future__ import annotations

import pytest

from rig.kernel import ages


@pytest.mark.parametrize(
    ("release", "read"),
    [
        ("2.6.18-6-686", (2, 6, 18)),
        ("2.6.20", (2, 6, 20)),
        ("3.2-rc1", (3, 2, 0)),
        ("6.1.0-50-amd64", (6, 1, 0)),
        ("mine", None),
    ],
)
def test_a_release_is_read_up_to_its_third_number(release: str, read: ages.Release | None) -> None:
    assert ages.numbers(release) == read


def test_a_bound_is_the_first_release_that_can() -> None:
    assert ages.older("2.6.26-2-amd64", ages.CRASHKERNEL_PLACED)
    assert not ages.older("2.6.27", ages.CRASHKERNEL_PLACED)
    assert ages.older("3.1.10", ages.GLIBC)
    assert not ages.older("3.2.0-4-amd64", ages.GLIBC)
    assert not ages.older("mine", ages.GLIBC)
    assert ages.needs_musl("2.6.18")
    assert not ages.needs_musl("3.2.0-4-amd64")
