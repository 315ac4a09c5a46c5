"""Small forged inputs: ELF files, Debian packages, a package repository on disk."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import pytest

needs_apt = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="needs apt and dpkg-deb"
)


def elf(interpreter: str = "", needed: Sequence[str] = (), modinfo: Sequence[str] = ()) -> bytes:
    """An ELF64 file that has nothing but PT_INTERP, .dynamic with .dynstr, and .modinfo."""
    dynstr, dynamic = b"\0", b""
    for name in needed:
        dynamic += struct.pack("<QQ", 1, len(dynstr))  # DT_NEEDED
        dynstr += name.encode() + b"\0"
    dynamic += struct.pack("<QQ", 5, 0) + struct.pack("<QQ", 0, 0)  # DT_STRTAB, DT_NULL
    names = b"\0.dynamic\0.dynstr\0.modinfo\0.shstrtab\0"
    parts = {
        ".dynamic": (6, dynamic, 2, 16),  # SHT_DYNAMIC, linked to section 2
        ".dynstr": (3, dynstr, 0, 0),  # SHT_STRTAB
        ".modinfo": (1, b"".join(item.encode() + b"\0" for item in modinfo), 0, 0),  # SHT_PROGBITS
        ".shstrtab": (3, names, 0, 0),
    }
    body, headers = interpreter.encode() + b"\0", [bytes(64)]
    start = 64 + 56  # behind the ELF header and one program header
    for name, (kind, data, link, entry) in parts.items():
        fields = (names.index(name.encode()), kind, 0, 0, start + len(body), len(data), link, 0, 1, entry)
        headers.append(struct.pack("<IIQQQQIIQQ", *fields))
        body += data
    segment_type = 3 if interpreter else 0  # PT_INTERP, PT_NULL
    length = len(interpreter) + 1
    segment = struct.pack("<IIQQQQQQ", segment_type, 4, start, 0, 0, length, length, 1)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, start + len(body), 0, 64, 56, 1, 64, len(headers), len(headers) - 1
    )
    return header + segment + body + b"".join(headers)


def package(control: Mapping[str, bytes], files: Mapping[str, bytes]) -> bytes:
    """A Debian package, not compressed (deb(5)). dpkg-deb would take as long to build one as all else of a test."""
    blob = b"!<arch>\n"
    for name, data in (("debian-binary", b"2.0\n"), ("control.tar", _tar(control)), ("data.tar", _tar(files))):
        blob += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return blob


def _tar(files: Mapping[str, bytes]) -> bytes:
    """With the directories that the files lie in, as dpkg wants them."""
    blob = io.BytesIO()
    folders = {folder for path in files for folder in PurePath(path).parents}
    with tarfile.open(fileobj=blob, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted({*map(PurePath, files), *folders}):
            member = tarfile.TarInfo(f"./{path}")
            member.type, member.mode = (tarfile.DIRTYPE, 0o755) if path in folders else (tarfile.REGTYPE, 0o644)
            member.size = len(files.get(str(path), b""))
            archive.addfile(member, io.BytesIO(files.get(str(path), b"")))
    return blob.getvalue()


@dataclass
class Repository:
    """A flat repository that apt can read without a network: `sources` goes into PackageCache."""

    root: Path
    arch: str = "amd64"
    stanzas: list[str] = field(default_factory=list)

    @property
    def sources(self) -> str:
        return f"deb [trusted=yes] copy:{self.root} ./\n"

    def add(
        self, name: str, version: str, files: Mapping[str, bytes], *, depends: str = "", section: str = "misc"
    ) -> Path:
        """Build a package and list it in the index."""
        control = f"Package: {name}\nVersion: {version}\nArchitecture: {self.arch}\nSection: {section}\n"
        control += "Maintainer: nobody <nobody@example.org>\nDescription: forged\n"
        control += f"Depends: {depends}\n" if depends else ""
        deb = self.root / f"{name}_{version}_{self.arch}.deb"
        data = package({"control": control.encode()}, files)
        deb.write_bytes(data)
        where = f"Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        self.stanzas.append(control + where)
        (self.root / "Packages").write_text("\n".join(self.stanzas))
        return deb
