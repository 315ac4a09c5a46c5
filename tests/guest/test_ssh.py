"""The SSH client, against a server made from the very host key file that the guest gets."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import paramiko  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from rig.errors import Cancelled, GuestCommandFailed, GuestDied, GuestHung, ProtocolError
from rig.guest.keys import RunKeys
from rig.guest.ssh import connect
from rig.vm.deadline import Deadline, Ending, Watch

KEYS = RunKeys.make()


def soon(seconds: float = 5) -> Deadline:
    return Deadline.after(seconds, "the SSH server")


def strings(blob: bytes) -> list[bytes]:
    """The strings that an SSH blob consists of (RFC 4251, 5)."""
    parts = []
    while blob:
        (length,) = struct.unpack_from(">I", blob)
        parts.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return parts


def host_key(keys: RunKeys) -> paramiko.PKey:
    """The private key in dropbear's host key file: type, then 32 bytes private and 32 public."""
    kind, pair = strings(keys.dropbear_host_key)
    assert kind == b"ssh-ed25519"
    assert len(pair) == 64
    private = Ed25519PrivateKey.from_private_bytes(pair[:32])
    assert pair[32:] == private.public_key().public_bytes_raw()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return paramiko.Ed25519Key.from_private_key(io.StringIO(pem))


class Account(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    """Lets in whoever has the key of KEYS.authorized_keys, and answers commands by echoing them."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = base64.b64decode(KEYS.authorized_keys.split()[1])
        good = username == "root" and key.asbytes() == known
        return int(paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        # Later: the reply to this request has to go out first.
        threading.Timer(0.05, self.answer, (channel, command)).start()
        return True

    def answer(self, channel: paramiko.Channel, command: bytes) -> None:
        if command == b"hang":
            return
        if command.startswith(b"dd "):
            channel.sendall(bytes(range(256)) * 16)
        channel.sendall(command)
        channel.sendall_stderr(b"its own words")
        channel.send_exit_status(7 if command == b"fail" else 0)
        channel.close()


Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a server and returns its port. resets: connections that it drops at first."""
    listener = socket.create_server(("127.0.0.1", 0))
    transports: list[paramiko.Transport] = []

    def serve(resets: int, speak: bool) -> None:
        kept = []
        try:
            for _ in range(resets):
                listener.accept()[0].close()
            while True:
                sock, _ = listener.accept()
                kept.append(sock)
                if speak:
                    transport = paramiko.Transport(sock)
                    transport.add_server_key(host_key(KEYS))
                    transports.append(transport)
                    transport.start_server(server=Account(), event=threading.Event())
        except OSError:
            for sock in kept:
                sock.close()

    def make(resets: int = 0, speak: bool = True) -> int:
        threading.Thread(target=serve, args=(resets, speak), daemon=True).start()
        return int(listener.getsockname()[1])

    yield make
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for transport in transports:
        transport.close()


def test_run_keys_are_made_anew() -> None:
    other = RunKeys.make()
    assert other.client_private != KEYS.client_private
    assert other.host_public != KEYS.host_public
    assert KEYS.authorized_keys.startswith("ssh-ed25519 AAAA")
    assert strings(KEYS.host_public)[1] == strings(KEYS.dropbear_host_key)[1][32:]


def test_command_after_some_resets(start: Start) -> None:
    with connect(start(resets=3), KEYS, soon(), Watch()) as ssh:
        assert ssh.run("uname -r", soon()) == b"uname -r"


def test_failed_command_says_its_own_words(start: Start) -> None:
    words = "exited with 7: its own words"
    with connect(start(), KEYS, soon(), Watch()) as ssh, pytest.raises(GuestCommandFailed, match=words):
        ssh.run("fail", soon())


def test_a_stream_comes_in_parts_and_its_failure_at_the_end(start: Start) -> None:
    with connect(start(), KEYS, soon(), Watch()) as ssh:
        parts = ssh.stream("fail", soon())
        assert next(parts) == b"fail"
        with pytest.raises(GuestCommandFailed, match="exited with 7"):
            next(parts)
        with contextlib.closing(ssh.stream("dd and no more of it", soon())) as abandoned:
            assert next(abandoned).startswith(bytes(range(256)))
        assert ssh.run("uname -r", soon()) == b"uname -r"
        assert ssh.protection.split()[-1] == "none"  # not compressed


def test_read_cuts_what_was_asked_for_out_of_whole_pages(start: Start) -> None:
    with connect(start(), KEYS, soon(), Watch()) as ssh:
        assert ssh.read("/proc/vmcore", 3 * 4096 + 5, 3, soon()) == bytes([5, 6, 7])
        command = ssh.read("/a b", 8190, 5000, soon())[2:]
        assert b"if='/a b' bs=4096 skip=1 count=3 " in command


def test_another_host_key_is_refused(start: Start) -> None:
    keys = dataclasses.replace(KEYS, host_public=RunKeys.make().host_public)
    with pytest.raises(ProtocolError, match="not the one made for this run"):
        connect(start(), keys, soon(), Watch())


def test_refused_client_key(start: Start) -> None:
    keys = dataclasses.replace(KEYS, client_private=RunKeys.make().client_private)
    with pytest.raises(ProtocolError, match="Authentication failed"):
        connect(start(), keys, soon(), Watch())


def test_server_that_never_speaks(start: Start) -> None:
    with pytest.raises(GuestHung, match="in vain for the SSH server"):
        connect(start(speak=False), KEYS, soon(0.3), Watch())


def test_hanging_command_ends_at_the_deadline(start: Start) -> None:
    with connect(start(), KEYS, soon(), Watch()) as ssh, pytest.raises(GuestHung):
        ssh.run("hang", soon(0.3))


def test_hanging_command_ends_with_the_guest(start: Start) -> None:
    watch = Watch()
    with connect(start(), KEYS, soon(), watch) as ssh:
        threading.Timer(0.1, watch.end, [Ending("triple-fault", "a triple fault")]).start()
        with pytest.raises(GuestDied, match="triple fault"):
            ssh.run("hang", soon())


def test_cancellation_is_seen_at_once(start: Start) -> None:
    cancel = threading.Event()
    with connect(start(), KEYS, soon(), Watch(cancel)) as ssh:
        cancel.set()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            ssh.run("hang", soon())
        assert time.monotonic() - started < 0.3
