"""Every error the rig raises on purpose.

    RigError                     anything below; carries a hint: what to do about it
    |-- RequestError             exit 2: the request is wrong
    |   |-- CatalogueError       a TOML file: names file, key and the valid values
    |   `-- UnsuitableKernel     not a bzImage, other architecture, lacks a CONFIG option
    |-- Untold                   exit 3: there are verdicts, and they are kept, but stdout took not all of them
    `-- CouldNotJudge            exit 3: no verdict could be reached; carries the phase
        |-- MachineError         this machine lacks something (QEMU, disk space, a tool, network)
        |-- PackageError         a package could not be had
        |-- GuestError           the guest did something unexpected
        |   |-- GuestHung        a deadline passed; console lines, CPU state
        |   |-- GuestDied        triple fault, reboot, QEMU gone; reason, console lines, CPU state
        |   `-- GuestCommandFailed   a command in the guest: argv, status, its own words
        |-- ProtocolError        QMP, gdbstub or SSH answered something that makes no sense
        |-- NotOffered           the kernel or CPU lacks what the scenario is about: the run is skipped, not judged
        |-- EvidenceError        evidence is missing, torn or contradicts itself
        `-- Cancelled            the user asked to stop

A failed check is not an error: it is a verdict.
"""

from __future__ import annotations


class RigError(Exception):
    """Base of all. `hint` says what the reader can do; `exit_code` is the contract's."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class RequestError(RigError):
    """What was asked for is wrong: an unknown name, a bad file, a missing option."""

    exit_code = 2


class CatalogueError(RequestError):
    """A TOML file does not say what a guest, kernel or scenario must say."""


class UnsuitableKernel(RequestError):
    """A kernel image that can't be put through the scenario, by what the image itself shows."""


class Untold(RigError):
    """Runs were judged and their results are kept, but they could not be shown. Says where they are."""


class CouldNotJudge(RigError):
    """No verdict could be reached. Neither a pass nor a failure.

    phase: the phase of the run in which it happened, filled in by the conductor.
    console: the last lines the guest printed, oldest first.
    cpu_state: `info registers` text at that time, or empty.
    """

    def __init__(
        self, message: str, *, hint: str = "", phase: str = "", console: str = "", cpu_state: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.phase = phase
        self.console = console
        self.cpu_state = cpu_state


class MachineError(CouldNotJudge):
    """The machine that the rig runs on lacks something."""


class PackageError(CouldNotJudge):
    """A distribution package could not be found, downloaded, verified or unpacked."""


class GuestError(CouldNotJudge):
    """The guest did something that the run can't go on from."""


class GuestHung(GuestError):
    """A phase's deadline passed."""


class GuestDied(GuestError):
    """The guest reset, powered off, triple-faulted, or QEMU ended."""


class GuestCommandFailed(GuestError):
    """A command inside the guest failed. `status` is its exit status, `output` its own words."""

    def __init__(self, command: str, status: int, output: str, *, hint: str = "") -> None:
        super().__init__(
            f"in the guest, `{command}` exited with {status}: {output.strip() or '(no output)'}", hint=hint
        )
        self.command = command
        self.status = status
        self.output = output


class ProtocolError(CouldNotJudge):
    """A peer (QMP, gdbstub, SSH server) answered something that makes no sense. Carries what was sent."""

    def __init__(self, message: str, *, sent: str = "", received: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.sent = sent
        self.received = received


class EvidenceError(CouldNotJudge):
    """Evidence is missing, torn, or contradicts itself."""


class NotOffered(CouldNotJudge):
    """What the scenario is about can't be had of this kernel, CPU or machine. Names the CONFIG option or CPU flag.

    The run's verdict is `skip`: neither a pass nor the rig's inability.
    """


class Cancelled(CouldNotJudge):
    """Ctrl-C, SIGTERM, or another run's failure asked this run to stop."""
