"""Hides secrets in texts and data before they are shown or stored.

A secret is the user part of a URI, or the value of a parameter whose name says so: `password`, `api_key`, `sig`. Texts
come from anywhere, also from the exceptions of libraries, so too much is hidden rather than too little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
# Words of a parameter's name: those that stand anywhere in a word, at its end, for a whole word, for the last word.
_ANYWHERE = ("secret", "password", "passwd", "passphrase", "credential", "signature", "authorization")
_AT_END = ("token", "pwd", "apikey", "accesskey", "accountkey", "privatekey", "sharedkey", "authkey", "masterkey")
_WHOLE = {"sig", "sas", "bearer", "jwt"}
_LAST = {"auth", "pass"}
# What `key` may belong to without being secret. Alone, it is a secret only in the query of a URI.
_PLAIN_KEYS = {"history", "teacher", "cohort", "probe", "point", "primary", "foreign", "public", "object", "cache"}
_CONTAINERS = {"abfs", "abfss", "wasb", "wasbs"}  # schemes in which a container stands before the @
_ACCOUNT = re.compile(r"[\w-]+\.")  # what follows a container and its @
_STORES = {"s3", "gs", "gcs", "az", "azure"}  # schemes in which a key stands there, never a user's name

_PORT = r"\d{1,5}(?:[/?#\s]|$)"
# The user part may hold any character that should have been written as %xx: `@`, `/`, and in the last form a space.
_USER = re.compile(
    rf"(?i)\b([a-z][a-z0-9+.-]*)://([^\s/]*|[^\s/:@]*:(?!{_PORT})\S*|[^\s/:@]*:(?!{_PORT})(?=\S)[^\n@]*)@"
)
_QUERY = re.compile(r"(://[^\n?]*\?)(\S+)")
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"
_NAMED = (  # how a parameter's name stands before its value, and what the value may be
    (
        re.compile(r"(?P<query>[?&]?)(?<![\w.%-])(?P<name>[\w.%-]+)[\"']?\s?=\s?"),
        re.compile(rf"{_QUOTED}|(?:[^\s&;]|[&;](?![\w.%-]+=))+"),
    ),
    (re.compile(r"(?P<query>)(?<![\w.%-])(?P<name>[A-Za-z][\w.-]*)[\"']?\s*:\s*"), re.compile(rf"{_QUOTED}|(?!//)\S+")),
    (re.compile(r"(?P<query>)(?<!\S)--(?P<name>[A-Za-z][\w-]*)\s+"), re.compile(rf"{_QUOTED}|[^\s-]\S*")),
)
_HEADER = re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer|digest|token)|bearer)\s+[^\s\"',]+")
_ENCODED = re.compile(r"\S*%[0-9A-Fa-f]{2}\S*")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def public(text: str) -> str:
    """A text in which secrets are replaced by ***, also those that are percent-encoded.

    Of a user and a password, the user is shown if it is a short word in lower-case letters.
    """
    return _ENCODED.sub(_decoded, _hidden(text))


def public_uri(uri: str) -> str:
    """`public` for a text that is a URI or a path as a user wrote it. White space in a URI does not end it."""
    return public(re.sub(r"\s", "%20", uri) if "://" in uri else uri)


def public_data(data: Any) -> Any:
    """Plain data in which secrets are replaced by ***, by their keys and in texts."""
    if isinstance(data, str):
        return public(data)
    if isinstance(data, Mapping):
        return {
            key: HIDDEN if isinstance(value, str) and is_secret(str(key)) else public_data(value)
            for key, value in data.items()
        }
    return [public_data(value) for value in data] if isinstance(data, list | tuple) else data


def is_secret(name: str) -> bool:
    """Whether a parameter of this name holds a secret."""
    words = [word.lower() for word in _WORD.findall(unquote(name))]
    for before, word in zip(["", *words], words, strict=False):
        if any(part in word for part in _ANYWHERE) or word.endswith(_AT_END) or word in _WHOLE:
            return True
        if word == "key" and before and before not in _PLAIN_KEYS:
            return True
    return bool(words) and words[-1] in _LAST


def _hidden(text: str) -> str:
    text = _HEADER.sub(rf"\1 {HIDDEN}", _QUERY.sub(_query, _USER.sub(_user, text)))
    for name, value in _NAMED:
        text = _without_values(text, name, value)
    return text


def _query(found: re.Match[str]) -> str:
    """The query of a URI. If a part of it has no name, it may be a token."""
    named = all(re.match(r"[^=]+=|$", part) for part in re.split("[&?]", found[2]))
    return found[0] if named else f"{found[1]}{HIDDEN}"


def _without_values(text: str, name: re.Pattern[str], value: re.Pattern[str]) -> str:
    """The text with the values of secret parameters hidden. The value of another parameter may contain such ones."""
    pieces, end = [], 0
    for found in name.finditer(text):
        in_query = found["query"] and found["name"].lower() in ("key", "session")
        if found.start() >= end and (in_query or is_secret(found["name"])):
            if secret := value.match(text, found.end()):
                quote = secret[0][0] if secret[0][0] in "\"'" and secret[0][0] == secret[0][-1] else ""
                pieces += [text[end : found.end()], quote, HIDDEN, quote]
                end = secret.end()
    return "".join([*pieces, text[end:]])


def _user(found: re.Match[str]) -> str:
    scheme, user = found[1], found[2]
    if scheme.lower() in _CONTAINERS and ":" not in user and _ACCOUNT.match(found.string, found.end()):
        return found[0]
    named = re.match(r"[a-z]{1,12}(?=:)", user)
    shown = f"{named[0]}:" if named and scheme.lower() not in _STORES else ""
    return f"{scheme}://{shown}{HIDDEN}@"


def _decoded(found: re.Match[str]) -> str:
    """A word with %xx in it: decoded and with its secrets hidden if there are any, else as it is."""
    decoded = found[0]
    for _ in range(4):  # several libraries may each have encoded it
        decoded = unquote(decoded)
        if (hidden := _hidden(decoded)) != decoded:
            return re.sub(r"\s", " ", hidden)
    return found[0]
