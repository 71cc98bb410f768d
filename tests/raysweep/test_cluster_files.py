"""The files that start a cluster: what is not set is reported, and what is set is right for those who read it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client
from moto import mock_aws
from ray.autoscaler._private.aws import config as aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

from raysweep.cluster.cluster_file import UNSET, faults
from raysweep.commands import doctor

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", *(f"deploy/{name}" for name in ("onprem.yaml", "gcp.yaml", "raycluster.yaml", "rayjob.yaml"))]
FILES += ["deploy/slurm.sh"]
VALUES = {
    "SET_REGION": "us-west-2",
    "SET_ZONE": "us-west-2a",
    "SET_HEAD_IP": "192.0.2.1",
    "SET_WORKER_IP": "192.0.2.2, 192.0.2.3",
    "SET_KEY": "~/.ssh/key",
    "SET_STORAGE": "s3://bucket/raysweep",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """The home of a user who has a key and a token."""
    for file in (".ssh/key", ".ray/auth_token"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


def filled(name: str, folder: Path, change=lambda text: text) -> Path:
    text = change((ROOT / name).read_text(encoding="utf-8"))
    file = folder / Path(name).name
    file.write_text(UNSET.sub(lambda name: VALUES.get(name[0], "something"), text), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", FILES)
def test_what_is_not_set_is_reported_with_its_line_and_nothing_else(name, tmp_path, capsys):
    assert doctor.main(["--cluster", name]) == 2
    messages = capsys.readouterr().err.splitlines()
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    unset = [n for n, line in enumerate(lines, 1) if UNSET.search(line.split(" # ")[0]) and not line.startswith("# ")]
    assert [line.split(":")[:2] for line in messages] == [
        [name, str(number)] for number in unset if lines[number - 1][0]
    ]
    assert doctor.main(["--cluster", str(filled(name, tmp_path))]) == 0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("SecurityGroupIds", "SecurityGroups", "ssh to the whole internet"),
        ("RAY_AUTH_MODE=token ray start --address", "ray start --address", "worker_start_ray_commands"),
        ("  ~/.ray/auth_token: ~/.ray/auth_token", "", "lacks ~/.ray/auth_token"),
        ("head_node_type: head", "head_node_type: nobody", "head_node_type"),
        ("max_workers: 5", "max_workers: many", "max_workers"),
        ("idle_timeout_minutes", "idle_timeout_hours", "idle_timeout_hours"),
    ],
)
def test_each_fault_of_a_cluster_file_is_one_line(old, new, says, tmp_path):
    (message,) = faults(filled("cluster.yaml", tmp_path, lambda text: text.replace(old, new)))
    assert says in message and "\n" not in message


def test_what_the_user_lacks_is_named(tmp_path, home):
    (home / ".ray" / "auth_token").unlink()
    (home / ".ssh" / "key").unlink()
    messages = faults(filled("deploy/onprem.yaml", tmp_path))
    assert len(messages) == 2 and "ray get-auth-token --generate" in messages[0] and "~/.ssh/key" in messages[1]


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "name: x\n", "\0"])
def test_other_files_are_refused_with_a_line(text, tmp_path, capsys):
    file = tmp_path / "other.yaml"
    file.write_text(text)
    assert doctor.main(["--cluster", str(file)]) == 2
    assert doctor.main(["--cluster", str(tmp_path / "missing.yaml")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@given(st.dictionaries(st.sampled_from(["provider", "kind", "spec", "auth", "file_mounts"]), st.text() | st.integers()))
def test_nothing_that_is_yaml_ends_in_a_traceback(tree):
    file = Path.home() / "any.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert doctor.main(["--cluster", str(file)]) in (0, 2)


# --- as who reads them sees them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/onprem.yaml", "deploy/gcp.yaml"])
def test_ray_accepts_them(name, tmp_path):
    config = prepare_config(yaml.safe_load(filled(name, tmp_path).read_text()))
    validate_config(config)
    assert all("RAY_AUTH_MODE=token" in line for line in config["head_start_ray_commands"] if "ray start" in line)


def test_aws_takes_the_nodes_and_ray_opens_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    with mock_aws():
        ec2, iam = boto3.client("ec2"), boto3.client("iam")
        subnet = next(s for s in ec2.describe_subnets()["Subnets"] if s["AvailabilityZone"] == "us-west-2a")
        group = ec2.create_security_group(GroupName="mine", Description="mine", VpcId=subnet["VpcId"])["GroupId"]
        iam.create_instance_profile(InstanceProfileName="something")
        values = VALUES | {"SET_SUBNET": subnet["SubnetId"], "SET_SECURITY_GROUP": group}
        monkeypatch.setattr(f"{__name__}.VALUES", values)
        tree = yaml.safe_load(filled("cluster.yaml", tmp_path).read_text())
        config = aws.bootstrap_aws(prepare_config(tree))
        image = ec2.describe_images()["Images"][0]["ImageId"]
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for kind, node in config["available_node_types"].items():
            assert node["node_config"]["ImageId"].startswith("resolve:ssm:")
            provider.create_node(node["node_config"] | {"ImageId": image}, {TAG_RAY_NODE_KIND: kind}, 1)
        made = [i for reservation in ec2.describe_instances()["Reservations"] for i in reservation["Instances"]]
        kinds = sorted((i["InstanceType"], i.get("InstanceLifecycle", "on-demand")) for i in made)
        assert kinds == [("m7i.2xlarge", "on-demand"), ("p5.48xlarge", "on-demand"), ("p5.48xlarge", "spot")]
        for node in made:
            assert {g["GroupId"] for card in node["NetworkInterfaces"] for g in card["Groups"]} == {group}
        groups = {g["GroupName"]: g for g in ec2.describe_security_groups()["SecurityGroups"]}
        assert set(groups) == {"default", "mine"} and not groups["mine"]["IpPermissions"]


KUBERAY = {  # ray.io/v1 of KubeRay 1.6, what is used of it: key -> type, or the keys below
    "RayCluster": {
        "rayVersion": str,
        "authOptions": {"mode": str, "secretName": str},
        "enableInTreeAutoscaling": bool,
        "headGroupSpec": {"rayStartParams": Mapping, "template": client.V1PodTemplateSpec},
        "workerGroupSpecs": [
            {
                "groupName": str,
                "replicas": int,
                "minReplicas": int,
                "maxReplicas": int,
                "rayStartParams": Mapping,
                "template": client.V1PodTemplateSpec,
            }
        ],
    }
}
KUBERAY["RayJob"] = {
    "entrypoint": str,
    "submissionMode": str,
    "shutdownAfterJobFinishes": bool,
    "backoffLimit": int,
    "rayClusterSpec": KUBERAY["RayCluster"],
}


def conforms(value: Any, kind: Any, where: str) -> None:
    """As kubeconform does, in its strict mode: no key that is not known, no value of another type."""
    if isinstance(kind, dict):
        assert set(value) <= set(kind), f"{where}: {set(value) - set(kind)}"
        for key, below in value.items():
            conforms(below, kind[key], f"{where}.{key}")
    elif isinstance(kind, list):
        for number, below in enumerate(value):
            conforms(below, kind[0], f"{where}[{number}]")
    elif isinstance(kind, str):
        simple = {"str": str, "int": int, "bool": bool, "object": object}
        if kind in simple:
            assert isinstance(value, simple[kind]), f"{where}: {value!r} is no {kind}"
        elif kind.lower().startswith("list["):
            conforms(value, [kind[5:-1]], where)
        elif kind.lower().startswith("dict"):
            assert all(isinstance(v, str) for v in value.values()), f"{where}: {value}"
        else:
            conforms(value, getattr(client, kind), where)
    elif hasattr(kind, "openapi_types"):
        names = {written: own for own, written in kind.attribute_map.items()}
        assert set(value) <= set(names), f"{where}: {set(value) - set(names)}"
        for key, below in value.items():
            conforms(below, kind.openapi_types[names[key]], f"{where}.{key}")
    else:
        assert isinstance(value, kind), f"{where}: {value!r}"


@pytest.mark.parametrize("name", ["deploy/raycluster.yaml", "deploy/rayjob.yaml"])
def test_kubernetes_accepts_them(name, tmp_path):
    tree = yaml.safe_load(filled(name, tmp_path).read_text())
    assert set(tree) == {"apiVersion", "kind", "metadata", "spec"} and tree["apiVersion"] == "ray.io/v1"
    conforms(tree["metadata"], client.V1ObjectMeta, "metadata")
    conforms(tree["spec"], KUBERAY[tree["kind"]], "spec")
    cluster = tree["spec"].get("rayClusterSpec", tree["spec"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_schema_check_finds_what_kubernetes_would(tmp_path):
    tree = yaml.safe_load(filled("deploy/raycluster.yaml", tmp_path).read_text())
    tree["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(AssertionError, match="imagePolicy"):
        conforms(tree["spec"], KUBERAY["RayCluster"], "spec")


@pytest.mark.parametrize("name", ["node.sh", "mlflow.sh", "slurm.sh"])
def test_the_scripts_are_bash(name):
    assert subprocess.run(["bash", "-n", ROOT / "deploy" / name]).returncode == 0
