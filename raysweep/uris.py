"""URIs: made from paths, and checked before they are used."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from raysweep.errors import UserError
from trainables.redaction import public_uri


def sqlite_uri(file: Path) -> str:
    """The URI of a SQLite file as SQLAlchemy reads it, and with it MLflow, Optuna and optuna-dashboard.

    SQLAlchemy decodes %xx and begins the options at a `?`. For MLflow the URI then names the driver too, because MLflow
    takes the rest of `sqlite:///…` for a path, undecoded, and creates the folders in it.
    """
    if "%" not in str(file) and "?" not in str(file):
        return f"sqlite:///{file}"
    return f"sqlite+pysqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


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
            f"--tracking-uri {public_uri(uri)}: give a database or a server, e.g. sqlite:///mlflow.db or http://…"
        )
