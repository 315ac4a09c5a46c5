from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rig import catalog
from rig.errors import CatalogueError
from rig.model import PackageId
from rig.rules import everywhere, own, words
from tests.test_catalog import GUEST, KERNEL, KNOWN, SCENARIO

SHA = "0" * 64


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        # an option of QEMU's machine that has it write a file
        ("guests/box.toml", "machine", "pc,dumpdtb=/tmp/x"),
        ("guests/box.toml", "machine", "-hda"),
        ("guests/box.toml", "cpu", "qemu64 -hda x"),
        ("guests/box.toml", "flavour", "../../amd64"),
        ("guests/box.toml", "cmdline", "quiet\\nreboot -f"),
        ("guests/box.toml", "crash_cmdline", "quiet\\u001b[2J"),
        ("guests/box.toml", "crashkernel", "160M init=/bin/sh"),
        ("guests/box.toml", "hypervisor", "-oDir::Bin::dpkg=/tmp/x"),
        ("scenarios/crash.toml", "crash_cmdline", "a\\nb"),
        ("scenarios/crash.toml", "crashkernel", "64M\\t@16M"),
        ("kernels/stock.toml", "headers", "linux-headers-{release} -oX"),
        ("kernels/stock.toml", "flavours", ["amd64", "../x"]),
        ("kernels/built.toml", "source", "--config-file=/tmp/x"),
        ("kernels/built.toml", "config", ["../../../etc/passwd"]),
        ("kernels/built.toml", "patch", "../x"),
    ],
)
def test_what_would_be_more_than_a_value_is_refused_by_file_and_key(
    tmp_path: Path, name: str, key: str, value: str | list[str]
) -> None:
    files = {"guests/box.toml": GUEST, "kernels/stock.toml": KERNEL, "scenarios/crash.toml": SCENARIO}
    files["kernels/built.toml"] = 'description = "built"\nsource = "linux-source-6.1"\nconfig = ["base", "{flavour}"]\n'
    lines = [line for line in files[name].splitlines() if not line.startswith(f"{key} ")]
    text = str(value) if isinstance(value, list) else f'"{value}"'
    files[name] = "\n".join([*lines, f"{key} = {text}"])
    for relative, content in files.items():
        path = tmp_path / relative
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(CatalogueError, match=f"{name}: {key}: .* is not ") as caught:
        catalog.read([tmp_path], KNOWN)
    assert caught.value.exit_code == 2


def test_quotes_are_part_of_a_command_line() -> None:
    """dyndbg="file x.c +p" is one parameter to the kernel (next_arg() in lib/cmdline.c)."""
    guest = catalog.load().guests["x86_64"]
    quoted = dataclasses.replace(guest, cmdline="""dyndbg="file kexec.c +p" a='b' $x;""")
    assert list(own(quoted, words.RULES)) == []


@pytest.mark.parametrize(
    ("path", "package", "complaint"),
    [
        ("cache/../../etc/passwd", {}, "is not a path that stays in its directory"),
        ("cache/x", {"name": "../../autostart/x"}, "is not a package's name"),
        ("cache/x", {"name": "-oX"}, "is not a package's name"),
        ("cache/x", {"name": ""}, "is not a package's name"),
        ("cache/x", {"version": "1 -oX"}, "is not a package's version"),
        ("cache/x", {"sha256": "*"}, "is not a package's sha256"),
        ("cache/x", {"arch": "../x"}, "is not a package's architecture"),
    ],
)
def test_what_a_stranger_was_made_of(path: str, package: dict[str, str], complaint: str) -> None:
    good = PackageId("linux-image-6.1.0-9-amd64", "6.1.27-1+deb12u1~x", "amd64", SHA)
    assert list(everywhere([Path("cache/a/b"), Path("/home/me/bzImage"), good], words.RULES)) == []
    told = everywhere({"file": Path(path), "package": dataclasses.replace(good, **package)}, words.RULES, "manifest")
    ((where, said),) = told
    assert where.startswith("manifest.package" if package else "manifest.file")
    assert complaint in said
