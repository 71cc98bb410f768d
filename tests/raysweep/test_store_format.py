"""The bytes on disk: manifests, records and lease facts are written as every earlier version wrote them."""

import json
from pathlib import Path

import pytest

from raysweep.store.files import Files
from raysweep.store.leases import LeaseFacts
from raysweep.store.manifest import DataFiles, FileFacts, Manifest, Platform, TrainingFacts
from raysweep.store.records import Certificate, FailureRecord, ProbeRecord

EARLIER = Path(__file__).parents[1] / "data" / "store_0.1"
PLATFORM = Platform(2, None, False, "cpu", {"torch": "2.9.0", "python": "3.11.7"})
PLATFORM_ON_DISK = {
    "workers": 2,
    "micro_batch": None,
    "compiled": False,
    "device": "cpu",
    "versions": {"torch": "2.9.0", "python": "3.11.7"},
}


def contents(pattern: str) -> list[dict]:
    files = sorted(EARLIER.glob(pattern))
    assert files
    return [json.loads(file.read_text())["manifest"] for file in files]


def test_manifests_of_an_earlier_version_keep_their_bytes():
    for content in contents("checkpoints/*/*/manifest.json"):
        assert json.dumps(Manifest.from_dict(content).as_dict()) == json.dumps(content)


def test_probes_of_an_earlier_version_keep_their_bytes():
    for sealed in contents("records/probes/*.json"):
        assert json.dumps(ProbeRecord.from_dict(sealed["content"]).as_dict()) == json.dumps(sealed["content"])


def test_a_manifest_on_disk(tmp_path):
    training = TrainingFacts(
        from_step=2,
        curve=[{"step": 3, "loss": 0.5}],
        seconds=1.5,
        memory_mib=100.0,
        taken=7.0,
        time=9.0,
        platform=PLATFORM,
        session="s",
        between=True,
        cohort=3,
        data=DataFiles("emoji9", {"content": "c"}),
    )
    manifest = Manifest("k", 4, {"n/a.bin": FileFacts(1, "d")}, {"step": 4}, training)
    files = Files(str(tmp_path))
    files.write_sealed("manifest.json", manifest.as_dict())
    content = {
        "key": "k",
        "step": 4,
        "files": {"n/a.bin": {"bytes": 1, "sha256": "d"}},
        "history": {"step": 4},
        "from_step": 2,
        "curve": [{"step": 3, "loss": 0.5}],
        "seconds": 1.5,
        "memory_mib": 100.0,
        "taken": 7.0,
        "time": 9.0,
        **PLATFORM_ON_DISK,
        "session": "s",
        "between": True,
        "cohort": 3,
        "data": {"name": "emoji9", "files": {"content": "c"}},
    }
    assert json.dumps(json.loads((tmp_path / "manifest.json").read_text())["manifest"]) == json.dumps(content)
    assert Manifest.from_dict(files.read_sealed("manifest.json")) == manifest
    assert manifest.training.device_seconds == 3.0 and manifest.checksums == {"a.bin": "d"}


def test_a_manifest_without_later_keys_has_defaults():
    manifest = Manifest.from_dict({"key": "k", "step": 4, "files": {}, "history": {}})
    assert manifest.training == TrainingFacts() and manifest.training.device_seconds == 0.0


COMPARED = Certificate("k", 4, 2, PLATFORM, True, files={"a": "d"}, seconds=2.0)
CERTIFICATE_ON_DISK = {"checkpoint": "k", "step": 4, "from_step": 2, **PLATFORM_ON_DISK}


@pytest.mark.parametrize(
    ("record", "content"),
    [
        (
            ProbeRecord({"fid": 1.0}, "p", "k", 4, {"samples": 10}, 2.5, PLATFORM),
            {"key": "p", "checkpoint": "k", "step": 4, "probe": {"samples": 10}}
            | {"metrics": {"fid": 1.0}, "seconds": 2.5, **PLATFORM_ON_DISK},
        ),
        (COMPARED, CERTIFICATE_ON_DISK | {"exact": True, "reason": "", "files": {"a": "d"}, "seconds": 2.0}),
        (
            Certificate("k", 4, 2, PLATFORM, None, "made with other device"),
            CERTIFICATE_ON_DISK | {"exact": None, "reason": "made with other device"},
        ),
        (
            FailureRecord(3, {"loss": 9.0}, {"loss": 1.0}, 2, {"seed": 0}, PLATFORM),
            {"step": 3, "terms": {"loss": 9.0}, "before": {"loss": 1.0}, "from_step": 2}
            | {"run": {"seed": 0}, **PLATFORM_ON_DISK},
        ),
        (LeaseFacts("train", 0, 8, "{}"), {"kind": "train", "begin": 0, "end": 8, "run": "{}"}),
        (LeaseFacts("study", milestones=(2, 4)), {"kind": "study", "milestones": (2, 4)}),
    ],
)
def test_records_and_lease_facts_on_disk(record, content):
    assert json.dumps(record.as_dict()) == json.dumps(content)
    assert type(record).from_dict(json.loads(json.dumps(content))) == record
