"""The SSH keys of one run."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_KEY_TYPE = b"ssh-ed25519"


@dataclass(frozen=True)
class RunKeys:
    """One run's keys. They open nothing but the guest that is booted with them, and end with it.

    authorized_keys: the line for /root/.ssh/authorized_keys. dropbear_host_key: the file
    /etc/dropbear/dropbear_ed25519_host_key. host_public: the same key's public half, an SSH wire-format blob.
    """

    client_private: str  # OpenSSH's PEM
    authorized_keys: str
    dropbear_host_key: bytes
    host_public: bytes

    @classmethod
    def make(cls) -> RunKeys:
        # only here: keys that are there already need no library
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

        client, host = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        pem = client.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
        line = client.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        private = host.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        public = host.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(
            client_private=pem,
            authorized_keys=f"{line} rig\n",
            dropbear_host_key=_string(_KEY_TYPE) + _string(private + public),
            host_public=_string(_KEY_TYPE) + _string(public),
        )


def _string(data: bytes) -> bytes:
    """A string as SSH encodes it (RFC 4251, 5), and as dropbear's buf_put_ed25519_priv_key() does."""
    return struct.pack(">I", len(data)) + data
