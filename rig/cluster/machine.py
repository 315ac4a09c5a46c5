"""A machine of the cluster, as it describes itself."""

from __future__ import annotations

import hashlib
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

import rig
from rig import catalog


@dataclass(frozen=True)
class Machine:
    """id: new each time that its workers are started. memory: MiB that guests may have together. rig: of rig_id()."""

    id: str
    name: str
    cpus: int
    memory: int
    rig: str
    qemu: str
    accel: str


def this_machine(cpus: int, memory: int, qemu: str, accel: str) -> Machine:
    return Machine(secrets.token_hex(8), socket.gethostname(), cpus, memory, rig_id(), qemu, accel)


def rig_id() -> str:
    """Version and front of the SHA-256 of all code of the rig: the verdict is the worker's, so it must be the same."""
    digest = hashlib.sha256()
    package = Path(rig.__file__).parent
    guests = catalog.roots()[0] / "guests"
    for root in (package, guests):
        for path in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return f"{rig.__version__} ({digest.hexdigest()[:12]})"
