"""Addresses as other people may see them: in the terminal, in JSON, in records."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):([^/\s]+)(?=@)")
_PARAMETER = re.compile(r"(?i)\b((?:secret|token|password|access|session)[a-z_-]*)=([^&\s]+)")


def public(text: str) -> str:
    """A text with the passwords, keys and tokens of the URIs in it replaced by ***."""
    return _PARAMETER.sub(r"\1=***", _PASSWORD.sub(r"\1:***", text))


def is_loopback(uri: str) -> bool:
    """Whether a server's address can be reached from its own machine alone."""
    host = urlsplit(uri if "://" in uri else f"//{uri}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
