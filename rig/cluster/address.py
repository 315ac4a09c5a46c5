"""Where a scheduler is, and who may be talked to: addresses, and the TLS that protects them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rig.errors import RequestError

if TYPE_CHECKING:
    import distributed

LOOPBACK = "127.0.0.1"
PORT = 8786  # of a scheduler: Dask's own default
WHY_TLS = "whoever reaches a scheduler or a worker can have it run anything, for Dask runs what it is sent"
TLS_OPTIONS = "--tls-ca, --tls-cert and --tls-key"


@dataclass(frozen=True)
class Tls:
    """PEM files: the authority that signs everybody's certificate, one's own certificate, and its key."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class Address:
    """A scheduler's. text: tcp://HOST:PORT or tls://HOST:PORT. tls: with the latter, and only then."""

    text: str
    tls: Tls | None


def tls_of(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """None when none of the files is given.

    :raise RequestError: only some of them are, or one is not there
    """
    files = [path for path in (ca, cert, key) if path is not None]
    if not files:
        return None
    if ca is None or cert is None or key is None:
        raise RequestError("TLS takes three files", hint=f"give {TLS_OPTIONS}, all of them or none")
    if missing := [str(path) for path in files if not path.is_file()]:
        raise RequestError(f"no such file: {', '.join(missing)}", hint=f"{TLS_OPTIONS} are PEM files")
    return Tls(ca, cert, key)


def parse(text: str, tls: Tls | None) -> Address:
    """A scheduler's address as a user gives it: HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT.

    :raise RequestError: it is none, or TLS is lacking or not asked for
    """
    match = re.fullmatch(r"(?:(tcp|tls)://)?(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):([0-9]{1,5})", text)
    if not match or not 0 < int(match[3]) < 1 << 16:
        raise RequestError(
            f"{text!r} is no address of a scheduler", hint="like tcp://127.0.0.1:8786, or tls://lab:8786"
        )
    protocol = match[1] or ("tls" if tls else "tcp")
    if (protocol == "tls") != (tls is not None):
        says = "asks for TLS" if protocol == "tls" else "asks for no TLS"
        raise RequestError(f"{text} {says}", hint=f"tls:// and {TLS_OPTIONS} go together")
    require_safe(match[2].strip("[]"), tls)
    return Address(f"{protocol}://{match[2]}:{match[3]}", tls)


def require_safe(host: str, tls: Tls | None) -> None:
    """Without TLS nothing but this machine itself is talked to.

    :raise RequestError: another one would be
    """
    if tls is None and not _is_loopback(host):
        raise RequestError(
            f"{host} is not this machine's loopback, and without TLS {WHY_TLS}",
            hint=f"give {TLS_OPTIONS}; or stay on {LOOPBACK}",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def not_ours(address: Address) -> RequestError:
    """Dask answers a question that it does not know with None: so does a scheduler that is no rig's."""
    return RequestError(f"{address.text} is no scheduler of the rig", hint="start one with `rig cluster scheduler`")


def require_engine() -> None:
    """:raise RequestError: Dask distributed is not installed"""
    try:
        import distributed  # noqa: F401
    except ImportError as problem:
        raise RequestError(
            f"a cluster takes Dask distributed, which is not installed ({problem})",
            hint="pip install 'rig[cluster]', on every machine of the cluster",
        ) from problem


def security(tls: Tls | None) -> distributed.Security:
    """What Dask is told of it. Scheduler, workers and clients show the same kind of certificate to each other."""
    import distributed

    if tls is None:
        return distributed.Security(require_encryption=False)  # type: ignore[no-untyped-call]
    roles = ("client", "scheduler", "worker")
    files = {f"tls_{role}_{what}": str(getattr(tls, what)) for role in roles for what in ("cert", "key")}
    return distributed.Security(  # type: ignore[no-untyped-call]
        tls_ca_file=str(tls.ca), require_encryption=True, **files
    )
