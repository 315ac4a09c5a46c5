"""stdout, for people: rich's Console but for one thing."""

from __future__ import annotations

import errno
import os

from rich.console import Console


class Screen(Console):
    """Styles only where the terminal has them.

    That nobody reads any more is raised, as print() does. rich ends the process then, with 1: a check has failed.
    """

    def on_broken_pipe(self) -> None:
        """:raise BrokenPipeError: always"""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
