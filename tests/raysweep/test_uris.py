"""URIs are shown without their secrets, and loopback addresses are recognised."""

import sqlite3
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from raysweep.errors import SweepError, UserError
from raysweep.store.manifest import DataFiles, Platform, TrainingFacts
from raysweep.store.records import FailureRecord
from raysweep.uris import is_loopback, sqlite_uri
from trainables.redaction import public, public_data


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
        ("https://ghp_abc123@host/x", "https://***@host/x"),
        ("https://ghp_abc123:x-oauth-basic@host/x", "https://***@host/x"),
        ("s3://AKID:sec/r+et@bucket/x", "s3://***@bucket/x"),
        ("S3://AKID:SECRET@bucket", "S3://***@bucket"),
        ("mysql://h/d?ssl_password=x&passwd=y&charset=utf8", "mysql://h/d?ssl_password=***&passwd=***&charset=utf8"),
        ("https://h/x?api_key=abc#top", "https://h/x?api_key=***"),
        ("https://a.blob.net/c?sv=2024&sig=ab%2Bc%3D&se=1", "https://a.blob.net/c?sv=2024&sig=***&se=1"),
        ("AccountName=a;AccountKey=ab+/c==;EndpointSuffix=x", "AccountName=a;AccountKey=***;EndpointSuffix=x"),
        ("AWS_SECRET_ACCESS_KEY=abc HF_TOKEN=hf_x", "AWS_SECRET_ACCESS_KEY=*** HF_TOKEN=***"),
        ("S3Store(bucket='b', secret_access_key='a b')", "S3Store(bucket='b', secret_access_key='***')"),
        ('{"aws_secret_access_key": "abc", "region": "eu"}', '{"aws_secret_access_key": "***", "region": "eu"}'),
        ("password: abc", "password: ***"),
        ("Authorization: Bearer abc.def", "Authorization: *** ***"),
        ("unrecognized arguments: --api-key abc", "unrecognized arguments: --api-key ***"),
        ("to=https%3A%2F%2Fu%3Ap%40h%2Fx", "to=https://u:***@h/x"),
        ("pass%77ord=abc", "pass%77ord=***"),
        ("a=?sig=abc", "a=?sig=***"),
        ("https://h/x?abcdef", "https://h/x?***"),
    ],
)
def test_secrets_in_addresses_are_not_shown(secret, shown):
    assert public(secret).startswith(shown)


PLAIN = [
    "http://127.0.0.1:5000/#/experiments/a@b",
    "s3://bucket/folder/user@host/x",
    "abfss://container@account.dfs.core.windows.net/x",
    "monkey=banana tokens=5 history_key=abc --set key=value teacher_key: abc",
    "/a%20b/c%3Fd#e",
    "RAY_AUTH_MODE=token in every `ray start` line",
]


@pytest.mark.parametrize(
    "plain", ["runs", "/a/b:c@d", "s3://bucket/x?region=eu", "http://127.0.0.1:5000", "a:b@c", *PLAIN]
)
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


NAMES = ["password", "ssl_password", "PASSWD", "apiKey", "aws_secret_access_key", "sig", "X-Amz-Signature", "token"]
WAYS = ["https://{}@h/x", "s3://{}@b/x", "https://h/x?a=1&{name}={}&b=2", "{name}={}", "https://h/x?{name}={}"]


@given(
    st.text("abcXYZ019+/=._-~!$", min_size=8, max_size=20).map(lambda text: f"S{text}T"),
    st.sampled_from(WAYS),
    st.sampled_from(NAMES),
    st.integers(0, 3),
    st.sampled_from(["{}", "cannot open {}: no such host", "{{'uri': '{}'}}", "at {}, twice: {}"]),
)
def test_no_secret_is_shown_however_often_it_is_encoded(secret, way, name, times, sentence):
    uri = way.format(quote(secret, safe=""), name=name)
    for _ in range(times):
        uri = quote(uri, safe="")
    shown = public(sentence.format(uri, uri))
    assert secret not in shown and quote(secret, safe="") not in shown, shown


def test_data_loses_the_values_of_secret_keys_and_the_secrets_in_its_texts():
    data = {"password": "x", "at": ["s3://K:S@b", 1], "history_key": "abc", "deep": {"apiKey": "y", "n": None}}
    hidden = {"password": "***", "at": ["s3://***@b", 1], "history_key": "abc", "deep": {"apiKey": "***", "n": None}}
    assert public_data(data) == hidden


@pytest.mark.parametrize("error", [UserError, SweepError])
def test_expected_failures_carry_no_secret(error):
    assert str(error("--storage s3://KEY:SECRET@b: away")) == "--storage s3://***@b: away"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=20))
def test_a_sqlite_uri_names_its_file_whatever_the_folder_is_called(name):
    path = f"/{name}/x.db"
    assert make_url(sqlite_uri(Path(path))).database == path


def test_sqlite_files_lie_where_their_uri_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a?b", "a%20b", "a b#c"):
        (tmp_path / name).mkdir()
        optuna.storages.get_storage(sqlite_uri(tmp_path / name / "optuna.db"))
        sqlite3.connect(tmp_path / name / "optuna.db").execute("select * from studies")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a b#c", "a%20b", "a?b"]


def test_the_record_of_a_failed_training_and_a_manifest_name_their_data_without_credentials():
    data = "s3://KEY:SECRET@bucket/set"
    failure = FailureRecord(
        1, {"loss": 1.0}, {}, 0, {"data": data, "phases": [{"teacher": {"data": data}}]}, Platform()
    )
    facts = TrainingFacts(data=DataFiles(data, {}))
    for content in (failure.as_dict(), facts.as_dict()):
        assert "SECRET" not in str(content) and "s3://***@bucket/set" in str(content)
