"""`--stop-at`: what the user asked for, and what they are told. How a guest is held is rig/hold.py's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rig.model import Checkpoint

QMP = "qmp"  # the socket of the user's monitor


@dataclass(frozen=True)
class Attachment:
    """How to get at the held guest: commands for a shell. cpus: where each one is, in words."""

    run: str
    checkpoint: Checkpoint
    gdb: str
    qmp: str
    console: str
    cpus: tuple[str, ...]


@dataclass(frozen=True)
class StopAt:
    """What the user asked for. folder: private, for the sockets. stdin: a file descriptor; a line from it, or its end,
    lets the run go on. tell: shows the user how to get at the guest."""

    checkpoint: Checkpoint
    folder: Path
    stdin: int
    tell: Callable[[Attachment], None]

    @property
    def monitor(self) -> Path:
        """The socket of the user's QMP monitor."""
        return self.folder / QMP
