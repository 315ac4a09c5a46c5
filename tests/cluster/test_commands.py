"""`rig cluster` and `rig matrix --cluster`, as far as they get without a cluster."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from rig import cli, doctor
from rig.doctor import Row, State


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RIG_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cluster scheduler --host 0.0.0.0", "Dask runs what it is sent"),
        ("cluster worker tcp://127.0.0.1:8786 --host 192.0.2.7", "Dask runs what it is sent"),
        ("cluster worker tcp://192.0.2.7:8786", "Dask runs what it is sent"),
        ("matrix panic --cluster tcp://192.0.2.7:8786", "Dask runs what it is sent"),
        ("cluster worker", "a worker takes the address of a scheduler"),
        ("cluster scheduler tcp://127.0.0.1:8786", "a scheduler takes none"),
        ("cluster worker tcp://127.0.0.1:8786 --port 7", "any free port"),
        ("cluster scheduler --tls-ca ca.pem", "three files"),
        ("matrix panic --cluster 127.0.0.1:9 --jobs 2", "--jobs is for this machine"),
        ("matrix panic --cluster lab", "no address of a scheduler"),
        ("matrix panic --tls-ca a --tls-cert b --tls-key c", "no such file: a, b, c"),
    ],
)
def test_wrong_requests(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_without_dask_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # as where it is not installed
    for words in ("cluster scheduler", "matrix panic --cluster 127.0.0.1:9"):
        assert cli.main(words.split()) == 2
        assert "pip install 'rig[cluster]'" in capsys.readouterr().err


def test_a_machine_that_can_run_no_guest_joins_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("qemu", State.MISSING, "not found", "install it"), Row("cpus", State.OK, "2 usable")]
    monkeypatch.setattr(doctor, "examine", lambda *_: rows)
    assert cli.main(["cluster", "worker", "127.0.0.1:9"]) == 3
    told = capsys.readouterr().err
    assert "gets no cells" in told
    assert "install it" in told
    assert "cpus" not in told


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["cluster", "scheduler", "--port", str(taken.getsockname()[1])]) == 3
    assert "no scheduler can be started at 127.0.0.1" in capsys.readouterr().err
