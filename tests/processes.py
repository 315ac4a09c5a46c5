"""What has become of processes."""

from __future__ import annotations

import time
from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie (which nobody may reap in a container)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status != "Z"


def has_ended(pid: int, within: float = 5.0) -> bool:
    """Whether the process ends within so many seconds. What is killed has ended when the kernel gets round to it."""
    until = time.monotonic() + within
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_running(pid)
