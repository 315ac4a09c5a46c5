from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.errors import MachineError, RequestError
from rig.vm import accel


@pytest.fixture(autouse=True)
def _fresh_result() -> Iterator[None]:
    accel._find_trouble.cache_clear()
    yield
    accel._find_trouble.cache_clear()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in the place of /dev/kvm."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(accel, "_DEVICE", path)
    return path


def test_tcg_as_asked_needs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "probe", None)
    assert accel.choose("tcg").name == "tcg"


def test_unknown_name() -> None:
    with pytest.raises(RequestError, match="'hax'"):
        accel.choose("hax")


@pytest.mark.usefixtures("device")
def test_usable_kvm_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "probe", lambda accel, timeout: "")
    assert accel.choose("auto").name == "kvm"
    assert accel.choose("kvm").name == "kvm"


@pytest.mark.usefixtures("device")
def test_kvm_that_crawls_is_not_chosen_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def probe(name: str, timeout: float) -> str:
        calls.append(name)
        return "it crawls"

    monkeypatch.setattr(accel, "probe", probe)
    chosen = accel.choose("auto")
    assert chosen.name == "tcg"
    assert "it crawls" in chosen.reason
    with pytest.raises(MachineError, match="it crawls"):
        accel.choose("kvm")
    assert calls == ["kvm"]


def test_no_device(device: Path) -> None:
    device.unlink()
    assert "No such file" in accel.choose("auto").reason


def test_boot_sector_is_one() -> None:
    assert len(accel.BOOT_SECTOR) == 512
    assert accel.BOOT_SECTOR[510:] == b"\x55\xaa"


@pytest.mark.vm
def test_boot_sector_comes_to_its_end() -> None:
    assert accel.probe("tcg", 20) == ""


@pytest.mark.vm
def test_probe_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did not come to its end" in accel.probe("tcg", 0.01)


@pytest.mark.vm
def test_probe_quotes_qemu() -> None:
    assert "invalid accelerator nonsense" in accel.probe("nonsense", 20)
