"""The crash kernel over SSH: a pinned host key, loopback only."""

from __future__ import annotations

import contextlib
import io
import math
import shlex
import socket
import threading
import time
from collections.abc import Generator, Iterator
from typing import Self

import paramiko  # type: ignore[import-untyped]

from rig.errors import GuestCommandFailed, ProtocolError
from rig.guest.keys import RunKeys
from rig.model import PAGE_SIZE
from rig.vm.deadline import POLL, Deadline, Watch

_LOOPBACK = "127.0.0.1"
_PATIENCE = 1.0  # seconds for the banner before the connection is tried anew
_PAUSE = 0.05  # seconds between two connections
_PART = 1 << 16  # bytes taken from a channel at once
_USER = "root"


class GuestSsh:
    """An SSH session with the guest; a context manager. Made by connect(). For one thread at a time.

    paramiko's own waits know neither the guest's end nor a cancellation, and some have no timeout. So a
    thread looks after them, and closes the transport to end whatever waits on it.
    """

    def __init__(self, transport: paramiko.Transport, deadline: Deadline, watch: Watch) -> None:
        self._transport = transport
        self._deadline = deadline
        self._watch = watch
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="ssh keeper", daemon=True)
        self._keeper.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed.set()
        self._keeper.join()
        self._transport.close()

    def open(self, keys: RunKeys) -> None:
        """Exchange keys and log in. Raises ProtocolError for another host key than the run's."""
        with self._waiting(self._deadline, "the key exchange"):
            self._transport.start_client()
            if self._transport.get_remote_server_key().asbytes() != keys.host_public:
                raise ProtocolError("the SSH server's host key is not the one made for this run")
            key = paramiko.Ed25519Key.from_private_key(io.StringIO(keys.client_private))
            self._transport.auth_publickey(_USER, key)

    def run(self, command: str, deadline: Deadline) -> bytes:
        """Run a command in the guest and return its stdout. Raises as stream() does."""
        return b"".join(self.stream(command, deadline))

    def stream(self, command: str, deadline: Deadline) -> Generator[bytes, None, None]:
        """Run a command in the guest; its stdout as it comes. To be exhausted, or closed.

        Raises GuestCommandFailed when the exit status is not 0 (its output is then stderr's), GuestHung,
        GuestDied, Cancelled, ProtocolError. What came before is then no whole output.
        """
        with self._waiting(deadline, command), self._transport.open_session() as channel:
            # callers quote what goes into it; and who runs it is the guest
            channel.exec_command(command)  # nosec B601
            while part := channel.recv(_PART):
                yield part
            errors: bytes = channel.makefile_stderr("rb").read()
            status: int = channel.recv_exit_status()
            if status < 0:
                raise EOFError("the session ended before the command's exit status came")
        if status:
            raise GuestCommandFailed(command, status, errors.decode(errors="replace"))

    def read(self, path: str, offset: int, size: int, deadline: Deadline) -> bytes:
        """Bytes of a file in the guest; fewer than `size` when the file ends before. Seeks to the offset.

        Raises as run() does.
        """
        skip, cut = divmod(offset, PAGE_SIZE)
        count = -(-(cut + size) // PAGE_SIZE)
        data = self.run(f"dd if={shlex.quote(path)} bs={PAGE_SIZE} skip={skip} count={count} iflag=fullblock", deadline)
        return data[cut : cut + size]

    @property
    def protection(self) -> str:
        """What the server's bytes are protected with: cipher, MAC, compression. Most of a transfer's time under TCG."""
        return f"{self._transport.remote_cipher} {self._transport.remote_mac} {self._transport.remote_compression}"

    @contextlib.contextmanager
    def _waiting(self, deadline: Deadline, what: str) -> Iterator[None]:
        """Let the keeper end the waits inside at the deadline, and say why they ended."""
        self._deadline = deadline
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._watch.check()
            deadline.check(tail=self._watch.tail)
            raise ProtocolError(f"the SSH session broke: {error!r}", sent=what) from error
        finally:
            self._deadline = _NEVER

    def _keep(self) -> None:
        while not self._closed.wait(POLL):
            if self._watch.broken or self._deadline.passed:
                self._transport.close()
                return


_NEVER = Deadline(math.inf, math.inf, "nothing")


def connect(port: int, keys: RunKeys, deadline: Deadline, watch: Watch) -> GuestSsh:
    """Connect to the guest's SSH server, through QEMU's forwarded port on loopback.

    Retries until the server's banner is there: QEMU accepts a connection before the guest does, and then
    resets it. Raises GuestHung when it never comes, GuestDied, Cancelled, ProtocolError when the host key
    is not this run's or the client key is refused.
    """
    ssh = GuestSsh(paramiko.Transport(_wait_for_banner(port, deadline, watch)), deadline, watch)
    try:
        ssh.open(keys)
    except BaseException:
        ssh.close()
        raise
    return ssh


def _wait_for_banner(port: int, deadline: Deadline, watch: Watch) -> socket.socket:
    """A connection on which the server has spoken; what it said is still unread."""
    while True:
        watch.check()
        deadline.check(tail=watch.tail)
        sock = socket.socket()
        try:
            if _has_banner(sock, port, min(_PATIENCE, deadline.left), watch):
                sock.settimeout(None)
                # a message that is sent while another is not acknowledged would wait for that (Nagle's algorithm)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        except BaseException:
            sock.close()
            raise
        sock.close()
        watch.wait_for_end(_PAUSE)


def _has_banner(sock: socket.socket, port: int, patience: float, watch: Watch) -> bool:
    """Connect; whether the server then speaks within `patience` seconds. False also when it hangs up."""
    until = time.monotonic() + patience
    sock.settimeout(POLL)
    try:
        sock.connect((_LOOPBACK, port))
        while time.monotonic() < until:
            watch.check()
            with contextlib.suppress(TimeoutError):
                return bool(sock.recv(4, socket.MSG_PEEK))
    except (ConnectionError, TimeoutError):
        return False
    return False
