"""An evidence directory as bytes, and back: what comes from another machine writes nothing but files of its own."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath

import zstandard

from rig.errors import EvidenceError

LEVEL = 1  # of zstd: most of it is packed already


def pack(directory: Path) -> bytes:
    """Its files, as tar in zstd."""
    packed = io.BytesIO()
    with (
        zstandard.ZstdCompressor(LEVEL).stream_writer(packed, closefd=False) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            archive.add(path, str(path.relative_to(directory)))
    return packed.getvalue()


def unpack(blob: bytes, directory: Path) -> None:
    """Into a directory that is there.

    :raise EvidenceError: it is torn, or has anything but files inside that directory, each once; some may be written
    """
    try:
        with (
            zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob)) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            for member in archive:
                _write(archive, member, directory)
    except (tarfile.TarError, zstandard.ZstdError, OSError) as problem:
        raise EvidenceError(f"the evidence that came can't be unpacked: {problem}") from problem


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    name = PurePosixPath(member.name)
    if not member.isreg() or name.is_absolute() or not name.parts or ".." in name.parts:
        raise EvidenceError(f"the evidence that came has in it what no evidence has: {member.name!r}")
    source = archive.extractfile(member)
    assert source is not None  # it is a regular file
    target = directory / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        while piece := source.read(1 << 20):
            file.write(piece)
