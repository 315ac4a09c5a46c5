"""Of all faults, those that tell most are injected whenever guests are booted, the others when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.place import make_master


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Unless the marker `faults` is named with -m, all but the quick ones are left out."""
    if "faults" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("faults") and not item.get_closest_marker("quick")]
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own."""
    target = tmp_path_factory.mktemp("faults") / "master"
    make_master(target)
    return target
