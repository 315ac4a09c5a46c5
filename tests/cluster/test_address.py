"""Who is talked to, and with what protection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rig.cluster import address
from rig.cluster.address import Tls
from rig.errors import RequestError


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    return Tls(tmp_path / "ca", tmp_path / "cert", tmp_path / "key")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8786", "tcp://127.0.0.1:8786"),
        ("tcp://localhost:1", "tcp://localhost:1"),
        ("[::1]:8786", "tcp://[::1]:8786"),
    ],
)
def test_the_loopback_takes_no_tls(text: str, expected: str) -> None:
    assert address.parse(text, None).text == expected


def test_with_tls_any_host_will_do(tls: Tls) -> None:
    assert address.parse("lab:8786", tls).text == "tls://lab:8786"
    assert address.parse("tls://192.0.2.7:8786", tls) == address.Address("tls://192.0.2.7:8786", tls)


@pytest.mark.parametrize("text", ["", "lab", "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:70000", "a b:1", "::1:2"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(RequestError, match="no address of a scheduler"):
        address.parse(text, None)


@pytest.mark.parametrize("host", ["192.0.2.7", "0.0.0.0", "::", "lab", "127.0.0.1.example"])
def test_without_tls_no_other_machine_is_talked_to(host: str) -> None:
    with pytest.raises(RequestError, match="Dask runs what it is sent"):
        address.require_safe(host, None)


def test_the_protocol_and_the_files_must_agree(tls: Tls) -> None:
    with pytest.raises(RequestError, match="asks for TLS"):
        address.parse("tls://127.0.0.1:1", None)
    with pytest.raises(RequestError, match="asks for no TLS"):
        address.parse("tcp://127.0.0.1:1", tls)


def test_tls_takes_all_three_files_and_they_must_be_there(tls: Tls, tmp_path: Path) -> None:
    assert address.tls_of(tls.ca, tls.cert, tls.key) == tls
    assert address.tls_of(None, None, None) is None
    with pytest.raises(RequestError, match="three files"):
        address.tls_of(tls.ca, tls.cert, None)
    with pytest.raises(RequestError, match="no such file"):
        address.tls_of(tls.ca, tls.cert, tmp_path / "elsewhere")


def test_without_dask_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # as where it is not installed
    with pytest.raises(RequestError) as raised:
        address.require_engine()
    assert "pip install 'rig[cluster]'" in raised.value.hint
