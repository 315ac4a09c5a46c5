"""What scheduler and worker share as processes: they serve until they are told to end."""

from __future__ import annotations

import asyncio
import signal


def ended_by_signal() -> asyncio.Event:
    """An event of the running loop that Ctrl-C, SIGTERM and a closed terminal set."""
    event = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event
