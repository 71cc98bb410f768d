"""Where files go and what is shown: everything of a study in its store, nothing beside it, and no secret anywhere."""

import json
import os
import sqlite3
import tempfile
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from raysweep.commands import prepare, report, run, store, sync_mlflow
from raysweep.errors import UserError
from raysweep.space.space import Space, load
from raysweep.store.files import Files
from raysweep.store.manifest import FileFacts, Manifest, TrainingFacts
from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store, StoredCheckpoint
from raysweep.study.state import StudyState
from trainables.datasets import prepared
from trainables.datasets.prepared import Prepared

TEXT = """\
study: placed
trial: {iterations: 400000, method: {kind: dispersive, weight: {choice: [0.5, 1.0]}}}
search: {trials: 1, rungs: [100000]}
"""
SECRETS = ("AKIDSECRET", "s3cr/et+PASS", quote("s3cr/et+PASS", safe=""))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process a user of another machine: with a home, temporary and working folders of its own, all empty.
    Returns the folder that holds them."""

    def move() -> Path:
        own = tmp_path / f"machine-{uuid.uuid4().hex[:6]}"
        for name, variables in {"home": ["HOME"], "cache": ["XDG_CACHE_HOME"], "tmp": ["TMPDIR"], "work": []}.items():
            (own / name).mkdir(parents=True)
            for variable in variables:
                monkeypatch.setenv(variable, str(own / name))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.chdir(own / "work")
        return own

    return move


def finish(space: Space, storage: str) -> StudyState:
    """A finished study of one trial, as a sweep leaves it, without its checkpoints."""
    study = StudyState(space, Store(storage))
    trial = study.propose(space.defaults)
    for step in study.rungs(trial):
        study.probed(0, step, {study.metric: 1 / step, f"{study.metric}_se": 0.01})
    assert study.finished
    return study


def contents(storage: str) -> dict[str, bytes]:
    """All files of a storage by path."""
    files = Files(storage)
    return {entry.path: files.read(entry.path) or b"" for entry in files.walk("")}


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def runs_of(database: Path, study: str) -> dict[str, list[str]]:
    """The artifacts of a study's runs in MLflow's database, by the runs' identities."""
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name(study).experiment_id
    return {
        run.data.tags["raysweep.identity"]: sorted(file.path for file in client.list_artifacts(run.info.run_id))
        for run in client.search_runs([experiment])
    }


@pytest.mark.slow
def test_all_that_a_sweep_writes_lies_in_the_object_store_and_another_machine_takes_it_from_there(
    write_space, machine, s3, capsys
):
    path, storage, here = write_space(TEXT), s3.format(f"placed-{uuid.uuid4().hex[:8]}"), machine()
    study = finish(load(path, "smoke"), storage)
    command = [str(path), "--profile", "smoke", "--storage", storage]
    assert run.main(command) == 0
    shown = capsys.readouterr().out
    folder = f"studies/{study.space.id}"
    stored = contents(storage)
    assert {f"{folder}/{name}" for name in ("report.html", "table.csv", "optuna.db")} | {"mlflow.db"} <= stored.keys()
    assert any(name.startswith("mlartifacts/") and name.endswith("/table.md") for name in stored)
    assert not below(here / "work") and not below(here / "home")
    report_file = Path(shown.split("Report: ")[1].split(",")[0])
    assert report_file.read_bytes() == stored[f"{folder}/report.html"] and here in report_file.parents
    assert f"s3://bucket/{storage.split('/')[3].partition('?')[0]}/{folder}" in shown

    there = machine()
    client = MlflowClient(f"sqlite:///{_mlflow(stored, there)}")
    noted = client.search_runs([client.get_experiment_by_name(study.space.id).experiment_id])[0]
    client.set_tag(noted.info.run_id, "by hand", "a note")
    Files(storage).write("mlflow.db", Path(there, "mlflow.db").read_bytes())
    assert sync_mlflow.main(["--storage", storage]) == 0  # has no copy: the store's counts, with the note in it
    (database,) = [file for file in there.rglob("mlflow.db") if file.parent != there]
    assert MlflowClient(f"sqlite:///{database}").get_run(noted.info.run_id).data.tags["by hand"] == "a note"
    artifacts = runs_of(database, study.space.id)
    assert "report.html" in artifacts["sweep"] and "run.json" in artifacts["trial 0"]
    assert not below(there / "work")


def _mlflow(stored: dict[str, bytes], folder: Path) -> Path:
    (folder / "mlflow.db").write_bytes(stored["mlflow.db"])
    return folder / "mlflow.db"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a?b", "a%20b", "ä b#c&d=e;f%3Fg"])
def test_any_character_may_stand_in_a_folder_of_the_storage(write_space, machine, name, tmp_path, capsys):
    path, here = write_space(TEXT), machine()
    storage = here / "stores" / name
    study = finish(load(path, "smoke"), str(storage))
    assert run.main([str(path), "--profile", "smoke", "--storage", f"../stores/{name}", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["storage"] == str(storage)
    for other in (report.main(["placed", "--storage", str(storage)]), sync_mlflow.main(["--storage", str(storage)])):
        assert other == 0
    assert os.listdir(here / "stores") == [name]  # no neighbour, such as the folder `a b` or the file `a`
    assert not below(here / "work")
    with sqlite3.connect(storage / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone()[0] >= 2
    assert [file for file in storage.glob("mlartifacts/*/*/artifacts/report.html")]
    assert (storage / "studies" / study.space.id / "optuna.db").is_file()


def put_set(place: str, detector: str) -> Prepared:
    """A prepared set in `place` that a study can name; nobody has trained on it."""
    content = {
        "latent_shape": [8, 8, 8],
        "num_classes": 9,
        "mirrored": False,
        "shift": [0.0] * 8,
        "scale": [1.0] * 8,
        "autoencoder": "a",
        "shards": [{"images": 64, "sha256": "0"}],
    }
    names = ("shards/00000.arrow", f"reference-{detector}.safetensors")
    made = Prepared(place, content, None, {name: {"bytes": 1, "sha256": "0"} for name in names}, {})
    job = {"source": "s", "autoencoder": "a", "size": 32, "mirrored": False, "keep_images": False}
    job |= {"normalise": "autoencoder", "detectors": [], "images_per_shard": 64}
    made.about.update(source="noise", class_names=list("abcdefghi"), job=job)
    files = Files(place)
    for name in names:
        files.write(name, b"x")
    files.write("manifest.json", made.spell())
    return made


def leaks(text: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in text]


@pytest.mark.slow
def test_credentials_of_storage_and_data_stand_nowhere_but_in_the_journal(write_space, machine, s3, capsys):
    key, secret, encoded = SECRETS
    place = s3.format(f"secret-{uuid.uuid4().hex[:8]}")
    put_set(place.replace("?", "/set?"), load(write_space(TEXT), "smoke").probe.detector_name)
    named = place.replace("s3://", f"s3://{key}:{encoded}@")
    data, here = named.replace("?", "/set?"), machine()
    path = write_space(TEXT.replace("trial: {", f"trial: {{data: {{choice: ['{data}', '{data}&anonymous=false']}}, "))
    storage = named.replace("?", "/store?")
    finish(load(path, "smoke"), storage)
    wrong = [str(path), "--profile", "smoke", "--storage", storage, "--tracking-uri", f"https://{key}@127.0.0.1:9/x"]
    right = [str(path), "--profile", "smoke", "--storage", storage]
    for command, options, code in (
        (run, right, 0),
        (run, [*right, "--json"], 0),
        (run, [*right, "--plan"], 0),
        (run, [*wrong], 0),  # an MLflow that does not answer is no reason to stop
        (run, [*right, "--tracking-uri", f"postgres://u:{encoded}@h/d"], 2),
        (report, ["placed", "--storage", storage], 0),
        (report, ["nothing", "--storage", storage], 2),
        (store, ["ls", "--storage", storage, "--json"], 0),
        (store, ["lineage", "0123", "--storage", storage], 2),
        (sync_mlflow, ["--storage", storage], 0),
        (prepare, ["emoji9", "--out", data], 2),
    ):
        assert command.main(options) == code, options
        printed = capsys.readouterr()
        assert not leaks((printed.out + printed.err).encode()), (options, printed)
    for name, content in contents(storage).items():
        if "/journal" not in name:
            assert not leaks(content), name
    for name in below(here):
        assert not leaks(Path(here, name).read_bytes()), name


def test_a_manifest_that_names_files_outside_its_set_is_refused(machine, s3, tmp_path):
    here = machine()
    for place in (str(here / "set"), s3.format(f"climbs-{uuid.uuid4().hex[:8]}")):
        made = put_set(place, "x")
        for name in ("../../../x", "/x", "shards/../../x", "a//b", ""):
            Files(place).write("manifest.json", _with_file(made, name).spell())
            prepared.read.cache_clear()
            with pytest.raises(LookupError, match="leads out of the folder") as refused:
                prepared.fetch(prepared.read(place), tmp_path / "cache")
            assert "\n" not in str(refused.value.args[0])
    assert not [path for path in tmp_path.rglob("x") if path.is_file()]


def _with_file(made: Prepared, name: str) -> Prepared:
    return Prepared(made.location, made.content, None, {**made.files, name: {"bytes": 1, "sha256": "0"}}, made.about)


def test_a_checkpoint_s_manifest_that_names_files_outside_its_folder_is_refused(storage, machine):
    here, opened = machine(), Store(storage)
    manifest = Manifest("k" * 64, 5, {"../../../../x": FileFacts(1, "0")}, {}, TrainingFacts())
    opened.files.write_sealed(f"checkpoints/5/{'k' * 64}/manifest.json", manifest.as_dict())
    with pytest.raises(UserError, match="leads out of the folder"):
        opened.open(opened.get("k" * 64, 5) or StoredCheckpoint("", 0, manifest))
    assert not [path for path in here.rglob("x") if path.is_file()]


def test_a_record_that_names_a_file_outside_its_folder_is_refused(storage, machine):
    machine()
    opened = Store(storage)
    sealed = {"content": ProbeRecord({"fid": 1.0}).as_dict(), "files": {"/../../../x": "0"}}
    opened.files.write_sealed("records/probes/key.json", sealed)
    with pytest.raises(UserError, match="leads out of its folder"):
        opened.record(ProbeRecord, "key")


def test_a_place_for_prepared_data_that_cannot_be_opened_is_called_by_its_option(machine, capsys):
    machine()
    assert prepare.main(["emoji9", "--out", "az://container/x"]) == 2  # no account is named
    assert capsys.readouterr().err.startswith("--out az://container/x: ")


@pytest.mark.parametrize(
    "uri, variable, values",
    [
        ("s3://bucket/x", "AWS_ENDPOINT_URL", ["http://127.0.0.1:1", "http://127.0.0.1:2"]),
        (
            "az://bucket/x",
            "AZURE_STORAGE_CONNECTION_STRING",
            ["AccountName=a;AccountKey=eA==", "AccountName=b;AccountKey=eA=="],
        ),
    ],
)
def test_stores_on_servers_that_the_environment_names_share_no_cache(uri, variable, values, machine, monkeypatch):
    machine()
    caches = set()
    for value in values:
        monkeypatch.setenv(variable, value)
        caches.add(Store(uri).cache)
    assert len(caches) == len(values)


# --- a fuzzer over storages and places of data

NAMES = st.lists(
    st.sampled_from(
        ["a", "b", "?", "#", "%", "%20", "%2e%2e", "..", ".", "/", " ", "ä", "@", ":", "&", "=", "~", "'", "*"]
    ),
    min_size=1,
    max_size=6,
).map("".join)
USERS = st.sampled_from(["", *(f"{user}@" for user in (SECRETS[0], f"u:{SECRETS[1]}", f"{SECRETS[0]}:{SECRETS[2]}"))])
HOSTS = st.sampled_from(["bucket", "bucket", "missing-bucket", "", "b:1", "localhost"])
QUERIES = st.sampled_from(
    ["", f"?sig={SECRETS[2]}", f"?password={SECRETS[0]}&region=eu", f"?{SECRETS[0]}", "?scheme=ftp", "?region"]
)
SCHEMES = st.sampled_from(["s3", "S3", "file", "gs", "az", "abfss", "http", "sqlite", "postgresql", "x"])


@st.composite
def places(draw: st.DrawFn) -> str:
    """A folder below the working directory, or a URI, often a wrong one. `ENDPOINT` stands for options that name a
    server of this machine, so that no example looks for one elsewhere."""
    name = draw(NAMES)
    if draw(st.booleans()):
        return f"./{name}"
    scheme, host = draw(SCHEMES), draw(HOSTS)
    if scheme in ("gs", "az", "abfss"):
        host = ""  # a bucket there would be looked for outside this machine
    query = draw(QUERIES) if scheme.lower() != "s3" else draw(st.sampled_from(["ENDPOINT", "ENDPOINT", "?x=ENDPOINT"]))
    return f"{scheme}://{draw(USERS)}{host}/{name}{query}"


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(storage=places(), data=places())
@example(storage="./a?b", data="./../a%20b")
@example(storage=f"s3://{SECRETS[0]}:{SECRETS[1]}@bucket/xENDPOINT", data=f"s3://{SECRETS[0]}:{SECRETS[1]}@b/xENDPOINT")
@example(storage="./..", data=f"https://{SECRETS[0]}@h/x?api_key={SECRETS[2]}")
def test_any_place_works_or_is_refused_in_a_line(storage, data, s3, write_space, machine, capsys):
    here, path = machine(), write_space(TEXT)
    endpoint = f"?{s3.partition('?')[2]}"
    storage, data = storage.replace("ENDPOINT", endpoint), data.replace("ENDPOINT", endpoint)
    yaml_data = json.dumps(data, ensure_ascii=False)
    space = [str(path), "--profile", "smoke", "--storage", storage, "--set", f"trial.data={yaml_data}"]
    for command, options in (
        (run, [*space, "--plan"]),
        (run, space),
        (report, ["x", "--storage", storage]),
        (store, ["ls", "--storage", storage]),
        (store, ["verify", "--storage", storage]),
        (sync_mlflow, ["--storage", storage]),
    ):
        capsys.readouterr()
        code = command.main(options)
        printed = capsys.readouterr()
        assert not leaks((printed.out + printed.err).encode()), (options, printed)
        assert code == 2 or (code == 0 and "--plan" in options), (options, printed)
        assert code == 0 or len(printed.err.strip().splitlines()) == 1, (options, printed)
    assert not below(here), (storage, data)  # there is no such data, so that nothing may have been written
