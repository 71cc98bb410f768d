"""URIs are shown without their secrets, and loopback addresses are recognised."""

import pytest

from raysweep.uris import is_loopback, public


@pytest.mark.parametrize(
    "secret, shown",
    [
        ("https://ann:hunter2@mlflow.example.org/x", "https://ann:***@mlflow.example.org/x"),
        ("postgresql://u:p%40ss@db:5432/mlflow", "postgresql://u:***@db:5432/mlflow"),
        ("postgresql+psycopg2://u:p:q@db/m", "postgresql+psycopg2://u:***@db/m"),
        (
            "s3://b/x?access_key=AK&secret_key=SK&region=eu&session_token=T",
            "s3://b/x?access_key=***&secret_key=***&region=eu&session_token=***",
        ),
        ("no answer from http://a:b@h:1 (token=abc)", "no answer from http://a:***@h:1 (token=***"),
    ],
)
def test_secrets_in_addresses_are_not_shown(secret, shown):
    assert public(secret).startswith(shown)


@pytest.mark.parametrize("plain", ["runs", "/a/b:c@d", "s3://bucket/x?region=eu", "http://127.0.0.1:5000", "a:b@c"])
def test_uris_without_secrets_are_shown_unchanged(plain):
    assert public(plain) == plain


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "http://localhost", "http://[::1]:1", "127.8.9.1:80"])
def test_addresses_of_this_machine_are_loopback(uri):
    assert is_loopback(uri)


@pytest.mark.parametrize(
    "uri", ["http://0.0.0.0:5000", "http://10.0.0.1", "http://mlflow", "http://localhost.evil.org"]
)
def test_addresses_that_other_machines_reach_are_not_loopback(uri):
    assert not is_loopback(uri)
