"""What makes the kernel panic. One entry a trigger; a scenario names it.

A trigger is a line for the guest's shell. It runs in a shell process of its own whose memory holds the pattern, and
that process itself must die of it, so that the pgd in CR3 is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Trigger:
    description: str
    command: str  # busybox sh; `echo` is a builtin: the shell process makes the system call


TRIGGERS: Mapping[str, Trigger] = {
    "sysrq-c": Trigger(
        "sysrq-c by writing to /proc/sysrq-trigger: the kernel calls panic() in the writer's context",
        "echo c > /proc/sysrq-trigger",
    ),
    "sysrq-c-last-cpu": Trigger(
        "as sysrq-c, on the last CPU: the crash kernel is entered, and boots, on one that isn't the boot CPU",
        "read -r online < /sys/devices/system/cpu/online && "
        "taskset -p -c ${online##*[-,]} $$ && echo c > /proc/sysrq-trigger",
    ),
}

# 128 x 64 bytes: two pages' worth, so that at least one page is full of it wherever the heap puts it.
PATTERN_REPEATS = 128


def trigger_line(trigger: Trigger, token: str) -> str:
    """The shell line that fills a fresh process's memory with `token`, PATTERN_REPEATS times, and pulls the trigger.

    The token is put together inside the process: neither the line's echo nor its command line holds the pattern.
    """
    half = len(token) // 2
    grow = "; ".join(["p=$p$p"] * (PATTERN_REPEATS.bit_length() - 1))
    return f"sh -c 'p={token[:half]}; p=${{p}}{token[half:]}; {grow}; {trigger.command}'"
