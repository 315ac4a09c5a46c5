"""What a bzImage says about itself, from forged ones; and the files that are mistaken for one."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from rig.errors import UnsuitableKernel
from rig.kernel.image import NEEDED, WISHED, inspect, missing_options, parse, parse_config, wished_options
from rig.kernel.payload import Undecodable, decompress
from rig.model import Arch, PagingMode
from tests.kernel.forge import bzimage

VERSION = "6.1.0-56-amd64 (debian@example.org) #1 SMP Debian 6.1.192-2"


def raw_lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": raw_lzma,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(level=19, write_content_size=False).compress,
}


def test_the_header() -> None:
    data = bzimage(VERSION)
    image = parse(data)
    assert image.release == "6.1.0-56-amd64"
    assert image.version_string == VERSION
    assert (image.arch, image.protocol, image.relocatable) == (Arch.AMD64, 0x20F, True)
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert parse(bzimage(VERSION, arch=Arch.I386)).arch is Arch.I386


@pytest.mark.parametrize("packer", PACKERS)
def test_the_embedded_configuration(packer: str) -> None:
    image = parse(bzimage(VERSION, config='CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x"\n', pack=PACKERS[packer]))
    assert image.config == {"CONFIG_A": "y", "CONFIG_C": '"x"'}
    assert image.config_note == ""


def test_an_uncompressed_kernel() -> None:
    image = parse(bzimage(VERSION, config="CONFIG_A=y\n", pack=lambda data: b"\x7fELF" + data))
    assert image.config == {"CONFIG_A": "y"}


@pytest.mark.parametrize(
    ("pack", "note"),
    [
        (gzip.compress, "the configuration is not embedded"),
        (lambda data: b"\x02\x21\x4c\x18" + data, "the configuration can't be unpacked: .*LZ4"),
        (lambda data: b"????" + data, "the configuration can't be unpacked: .*doesn't know"),
        (
            lambda data: gzip.compress(data)[:2] + bytes(20),
            "the configuration can't be unpacked: broken data",
        ),
    ],
)
def test_why_there_is_no_configuration(pack: Callable[[bytes], bytes], note: str) -> None:
    image = parse(bzimage(VERSION, pack=pack))
    assert image.config is None
    assert re.match(note, image.config_note)


def test_the_configuration_is_not_read_when_it_is_not_wanted() -> None:
    image = parse(bzimage(VERSION, config="CONFIG_A=y\n"), read_config=False)
    assert (image.config, image.config_note) == (None, "the configuration was not looked for")


@pytest.mark.parametrize(
    ("kernel", "arch"),
    [(b"Linux\0\0x86_64\0\0", Arch.AMD64), (b"Linux\0\0i386\0\0, not x86_64", Arch.I386)],
)
def test_old_protocols_tell_their_architecture_by_utsname(kernel: bytes, arch: Arch) -> None:
    image = parse(bzimage("2.6.18 (x)", protocol=0x204, kernel=kernel), read_config=False)
    assert (image.arch, image.relocatable) == (arch, False)


def test_gzips_magic_within_the_decompressor_is_passed_over() -> None:
    packed = bzimage(
        "2.6.18 (x)",
        protocol=0x204,
        config="CONFIG_A=y\n",
        pack=lambda data: b"\x1f\x8b\x08 and no stream" + gzip.compress(data),
    )
    assert parse(packed).config == {"CONFIG_A": "y"}


def test_an_old_protocol_whose_kernel_cannot_be_read() -> None:
    with pytest.raises(UnsuitableKernel, match="doesn't tell its architecture"):
        parse(bzimage("2.6.18 (x)", protocol=0x204, pack=lambda data: b"????" + data))


MISTAKES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "vmlinux": (b"\x7fELF" + bytes(4096), "ELF file, a vmlinux"),
    "text": (b"hello\n" * 900, "not a bzImage: no boot header"),
    "short": (bzimage(VERSION)[:0x210], "not a bzImage: no boot header"),
    "truncated": (bzimage(VERSION)[:-16], "is truncated: "),
    "zImage": (bytes([*bzimage(VERSION)[:0x211], 0, *bzimage(VERSION)[0x212:]]), "loaded low"),
    "no version": (bzimage(""), "doesn't tell its release"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_not_a_bzimage_is_told_by_name(tmp_path: Path, mistake: str) -> None:
    data, words = MISTAKES[mistake]
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(UnsuitableKernel, match=words) as caught:
        inspect(tmp_path / "image")
    assert str(tmp_path / "image") in caught.value.message


def test_the_last_paragraph_of_an_old_image_need_not_be_full() -> None:
    """arch/i386/boot/tools/build.c of 2.6.18 rounds syssize up, and writes what there is."""
    old = bzimage("2.6.18 (x)", protocol=0x204, kernel=b"\0i686\0abc")  # the last 15 bytes only fill it up
    assert parse(old[:-15]).release == "2.6.18"
    assert not parse(old).relocatable


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsuitableKernel, match="is a directory"):
        inspect(tmp_path)
    with pytest.raises(UnsuitableKernel, match="can't be read: No such file"):
        inspect(tmp_path / "nothing")
    with pytest.raises(UnsuitableKernel, match="not a regular file"):
        inspect(tmp_path / "pipe")


def test_options_that_are_missing_or_modules() -> None:
    config = dict.fromkeys([*NEEDED, *WISHED, "CONFIG_X86_64"], "y")
    assert missing_options(config, Arch.AMD64, PagingMode.FOUR_LEVEL) == []
    assert wished_options(config) == []
    del config["CONFIG_KEXEC"]
    config["CONFIG_PROC_VMCORE"] = "n"
    config["CONFIG_8139CP"] = "m"
    assert missing_options(config, Arch.AMD64, PagingMode.FOUR_LEVEL) == [
        "CONFIG_KEXEC",
        "CONFIG_PROC_VMCORE",
    ]
    assert wished_options(config) == ["CONFIG_8139CP"]


@pytest.mark.parametrize(
    ("options", "arch", "paging", "missing"),
    [
        ([], Arch.I386, PagingMode.TWO_LEVEL, []),
        ([], Arch.I386, PagingMode.PAE, ["CONFIG_X86_PAE"]),
        (["CONFIG_X86_PAE"], Arch.I386, PagingMode.PAE, []),
        (["CONFIG_X86_PAE"], Arch.I386, PagingMode.TWO_LEVEL, ["CONFIG_X86_PAE=n"]),
        ([], Arch.AMD64, PagingMode.FOUR_LEVEL, ["CONFIG_X86_64"]),
        (["CONFIG_X86_64"], Arch.I386, PagingMode.PAE, ["CONFIG_X86_64=n"]),
    ],
)
def test_the_guests_paging_mode(options: list[str], arch: Arch, paging: PagingMode, missing: list[str]) -> None:
    config = dict.fromkeys([*NEEDED, *options], "y")
    assert missing_options(config, arch, paging) == missing


def test_an_old_kernel_is_not_asked_for_options_it_never_had() -> None:
    config = dict.fromkeys({*NEEDED} - {"CONFIG_BINFMT_SCRIPT"}, "y")
    ask = (config, Arch.I386, PagingMode.TWO_LEVEL)
    assert missing_options(*ask, release="2.6.18-6-686") == []
    assert missing_options(*ask, release="3.9") == []
    assert missing_options(*ask, release="6.1.0") == ["CONFIG_BINFMT_SCRIPT"]
    assert missing_options(*ask) == ["CONFIG_BINFMT_SCRIPT"]


def test_an_old_kernel_is_never_its_own_crash_kernel() -> None:
    """2.6.20 is relocatable on i386 and may well have neither of the other two."""
    config = dict.fromkeys({*NEEDED} - {"CONFIG_RELOCATABLE", "CONFIG_CRASH_DUMP", "CONFIG_PROC_VMCORE"}, "y")
    ask = (config, Arch.I386, PagingMode.TWO_LEVEL)
    assert missing_options(*ask, release="2.6.20") == []
    assert missing_options(*ask, release="3.2") == ["CONFIG_CRASH_DUMP", "CONFIG_PROC_VMCORE", "CONFIG_RELOCATABLE"]


def test_a_kernel_that_cant_be_moved_need_not_be_able_to_be_a_crash_kernel() -> None:
    config = dict.fromkeys({*NEEDED} - {"CONFIG_RELOCATABLE", "CONFIG_CRASH_DUMP", "CONFIG_PROC_VMCORE"}, "y")
    ask = (config, Arch.I386, PagingMode.TWO_LEVEL, "6.1.0")
    assert missing_options(*ask, relocatable=False) == []
    assert missing_options(*ask) == ["CONFIG_CRASH_DUMP", "CONFIG_PROC_VMCORE", "CONFIG_RELOCATABLE"]


def test_a_dot_config() -> None:
    text = '#\n# CONFIG_NO is not set\nCONFIG_HZ=250\nCONFIG_S="a=b"\n CONFIG_INDENTED=y\n'
    assert parse_config(text) == {"CONFIG_HZ": "250", "CONFIG_S": '"a=b"'}


def test_what_follows_the_stream_is_ignored() -> None:
    for packer in PACKERS.values():
        assert decompress(packer(b"kernel") + b"\x06\0\0\0") == b"kernel"


def test_torn_streams() -> None:
    for packer in PACKERS.values():
        broken = packer(bytes(range(256)) * 40)[:6] + b"\xff" * 60
        with pytest.raises(Undecodable):
            decompress(broken)
