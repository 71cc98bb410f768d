"""URIs: hides their secrets before they are shown or stored, and checks whether they are local or supported."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from raysweep.errors import UserError

_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):([^/\s]+)(?=@)")
_PARAMETER = re.compile(r"(?i)\b((?:secret|token|password|access|session)[a-z_-]*)=([^&\s]+)")


def public(text: str) -> str:
    """A text in which the passwords, keys and tokens of URIs are replaced by ***."""
    return _PARAMETER.sub(r"\1=***", _PASSWORD.sub(r"\1:***", text))


def is_loopback(uri: str) -> bool:
    """Whether a server at this address can be reached from its own machine only."""
    host = urlsplit(uri if "://" in uri else f"//{uri}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_tracking_uri(uri: str) -> None:
    """Refuse a tracking URI that MLflow 3 does not support, before anything is started.

    Raises:
        UserError: it is neither a database nor a server.
    """
    if uri.split(":")[0].split("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql", "http", "https"):
        raise UserError(
            f"--tracking-uri {public(uri)}: give a database or a server, e.g. sqlite:///mlflow.db or http://…"
        )
