"""Locations of files: a folder of this machine, or a URI of an object store, opened with obstore.

    runs/table5                                   a folder; every character stands for itself
    file:///data/runs                             a folder as a URI, in which %20 stands for a space
    s3://bucket/folder?region=eu-west-1           Amazon S3
    s3://bucket/folder?endpoint_override=host:9000&scheme=http     another server that speaks S3
    gs://bucket/folder                            Google Cloud Storage
    az://container/folder?account=name            Azure Blob Storage

Credentials come from where each cloud's own tools keep them; an S3 URI may also name them: `s3://KEY:SECRET@bucket`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "abfs": "az", "abfss": "az"}
OPTIONS = {  # scheme -> what may follow the ? of its URIs
    "s3": ("region", "endpoint_override", "scheme", "anonymous"),
    "gs": ("anonymous",),
    "az": ("account", "endpoint_override", "scheme", "anonymous"),
}
_BUCKET = re.compile(r"[A-Za-z0-9._$-]+")
_PLAIN_NAME = re.compile(r"[a-z_]{1,30}")
# Our own code waits for a storage that is away and says so. The library repeats only what a moment mends.
_RETRIES = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
}
_CLIENT = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}


@dataclass(frozen=True)
class Location:
    """A folder of this machine or of an object store.

    Attributes:
        scheme: `file`, `s3`, `gs` or `az`.
        bucket: the bucket, or Azure's container; empty for a folder of this machine.
        path: the folder in it, without slashes at the ends; for a folder of this machine, its absolute path.
        options: what follows the ? of the URI, by name.
        credentials: key and secret that an S3 URI names.
    """

    scheme: str
    bucket: str
    path: str
    options: tuple[tuple[str, str], ...] = ()
    credentials: tuple[str, str] | None = None

    @classmethod
    def parse(cls, text: str) -> Location:
        """The location that a user has named.

        Raises:
            ValueError: it is none; the message shows no part of `text` that may be secret.
        """
        if not text or any(ord(character) < 32 or ord(character) == 127 for character in text):
            raise ValueError("is empty or contains control characters")
        scheme, mark, rest = text.partition("://")
        if not mark:
            return cls("file", "", os.path.abspath(os.path.expanduser(text)))
        scheme = scheme.lower()
        if scheme == "file":
            return cls._local(rest)
        if scheme not in SCHEMES:
            raise ValueError(f"has the unknown scheme '{scheme}'; known are file, {', '.join(SCHEMES)}")
        return cls._remote(SCHEMES[scheme], rest)

    @classmethod
    def _local(cls, rest: str) -> Location:
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError("names a host; a file URI begins with file:///")
        return cls("file", "", os.path.abspath(_decoded(f"/{path}")))

    @classmethod
    def _remote(cls, scheme: str, rest: str) -> Location:
        rest, _, query = rest.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if unknown := sorted(set(options) - set(OPTIONS[scheme])):
            named = f" '{unknown[0]}'" if _PLAIN_NAME.fullmatch(unknown[0]) else ""  # else it may be a secret
            raise ValueError(f"has the unknown option{named}; known are {', '.join(OPTIONS[scheme])}")
        if "endpoint_override" in options and options.get("scheme", "https") not in ("http", "https"):
            raise ValueError("has a scheme that is neither http nor https")
        if "@" in options.get("endpoint_override", ""):
            raise ValueError("names a user in its endpoint; give credentials as the cloud's own tools take them")
        authority, _, path = rest.partition("/")
        user, at, bucket = authority.rpartition("@")
        credentials = None
        if at and scheme == "az" and "." in bucket:  # abfss://container@account.dfs.core.windows.net/path
            user, bucket, options = "", user, {"account": bucket.partition(".")[0], **options}
        elif at and user == "anonymous":
            options["anonymous"] = "true"
        elif at and scheme == "s3" and ":" in user:
            key, _, secret = user.partition(":")
            credentials = unquote(key), unquote(secret)
        elif at:
            raise ValueError("names a user; give credentials as the cloud's own tools take them")
        parts = [part for part in _decoded(path).split("/") if part]
        if not _BUCKET.fullmatch(bucket) or ".." in parts or "." in parts:
            raise ValueError("has no bucket's name after its ://, or '.' or '..' in its path")
        return cls(scheme, bucket, "/".join(parts), tuple(sorted(options.items())), credentials)

    def __truediv__(self, name: str) -> Location:
        """The folder or file `name` in this one.

        Raises:
            ValueError: it would not lie in this one.
        """
        return replace(self, path=f"{self.path.rstrip('/')}/{inside(name)}" if self.path else inside(name))

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.path
        user = "{}:{}@".format(*(quote(word, safe="") for word in self.credentials)) if self.credentials else ""
        options = f"?{urlencode(self.options)}" if self.options else ""
        return f"{self.scheme}://{user}{self.bucket}/{quote(self.path)}{options}"

    @property
    def folder(self) -> Path | None:
        """The folder of this machine; None for an object store."""
        return Path(self.path) if self.scheme == "file" else None

    @property
    def identity(self) -> str:
        """Names this folder among all that the machine can reach, without credentials: its path, and the server or
        account that its URI names, or else the environment."""
        environment: dict[str, str | None] = {}
        if self.scheme == "s3":
            environment["endpoint_override"] = _environment_endpoint()
        if self.scheme == "az":
            connection = _azure_connection()
            environment["account"] = connection.get("AccountName") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
            environment["endpoint_override"] = connection.get("BlobEndpoint")
        named = environment | {name: value for name, value in self.options if name in ("account", "endpoint_override")}
        options = tuple(sorted((name, value) for name, value in named.items() if value))
        return str(replace(self, options=options, credentials=None))

    def open(self) -> ObjectStore:
        """The object store whose paths lie in this location. A folder of this machine is created.

        Raises:
            ValueError, OSError, Exception: obstore's errors, such as a missing account name.
        """
        options, prefix = dict(self.options), self.path or None
        settings: dict[str, Any] = {"client_options": dict(_CLIENT), "retry_config": _RETRIES, "prefix": prefix}
        if options.get("anonymous") in ("true", "1"):
            settings["skip_signature"] = True
        if self.scheme == "file":
            return LocalStore(self.path, mkdir=True)
        if "endpoint_override" in options:
            settings["endpoint"] = _endpoint(options)
        if self.scheme == "s3":
            return S3Store(self.bucket, **self._s3(options, settings))
        if self.scheme == "gs":
            return GCSStore(self.bucket, **settings)
        return AzureStore(self.bucket, **_azure(options, settings))

    def _s3(self, options: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
        endpoint = settings.get("endpoint") or _environment_endpoint()
        if endpoint:
            settings["endpoint"] = endpoint
            settings["client_options"]["allow_http"] = endpoint.startswith("http://")
        if self.credentials:
            settings["access_key_id"], settings["secret_access_key"] = self.credentials
        elif "skip_signature" not in settings and _has_aws_profile():
            from obstore.auth.boto3 import Boto3CredentialProvider

            settings["credential_provider"] = Boto3CredentialProvider()
        region = options.get("region") or (endpoint and _environment_region()) or _bucket_region(self.bucket, endpoint)
        return settings | {"region": region}


def inside(name: str) -> str:
    """The name of a file relative to a folder, as it may stand in a foreign file, if the file lies in the folder.

    Raises:
        ValueError: it does not.
    """
    if name.startswith("/") or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        raise ValueError(f"{name!r} leads out of the folder")
    return name


def _decoded(path: str) -> str:
    """The path of a URI with its %xx replaced."""
    decoded = unquote(path, errors="strict")
    if any(ord(character) < 32 or ord(character) == 127 for character in decoded):
        raise ValueError("contains control characters")
    return decoded


def _endpoint(options: dict[str, str]) -> str:
    given = options["endpoint_override"]
    return given if "://" in given else f"{options.get('scheme', 'https')}://{given}"


def _environment_endpoint() -> str | None:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _environment_region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _bucket_region(bucket: str, endpoint: str | None) -> str:
    """The region of a bucket, which S3 tells anyone who asks; that of the environment where it does not answer."""
    if endpoint:
        return _environment_region()
    request = urllib.request.Request(f"https://{quote(bucket)}.s3.amazonaws.com", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:  # also for a bucket of another region, or one that is not ours
        headers = error.headers
    except OSError:
        return _environment_region()
    return headers.get("x-amz-bucket-region") or _environment_region()


def _has_aws_profile() -> bool:
    """Whether credentials are in a file of AWS's tools, which boto3 can read and obstore cannot.

    Raises:
        ValueError: they are, and boto3 is not installed.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID") and not os.environ.get("AWS_PROFILE"):
        return False
    files = [os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")]
    files.append(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"))
    if not any(Path(file).expanduser().is_file() for file in files):
        return False
    if importlib.util.find_spec("boto3") is None:
        raise ValueError("has its credentials in ~/.aws, which boto3 reads: pip install 'raysweep[aws]'")
    return True


def _azure(options: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """Azure's settings: from the URI, else from AZURE_STORAGE_CONNECTION_STRING, which Azure's own tools read. obstore
    reads AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY and the other variables itself."""
    connection = _azure_connection()
    named = {"account_name": "AccountName", "account_key": "AccountKey", "endpoint": "BlobEndpoint"}
    settings = {ours: connection[theirs] for ours, theirs in named.items() if theirs in connection} | settings
    if account := options.get("account"):
        settings["account_name"] = account
    settings["client_options"]["allow_http"] = settings.get("endpoint", "").startswith("http://")
    return settings


def _azure_connection() -> dict[str, str]:
    pairs = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
    return dict(pair.partition("=")[::2] for pair in pairs if pair)
