"""The Kubernetes manifests have KubeRay's fields and no others, keep Ray's ports inside, and start what the code is.

The schemas are the part of KubeRay's ray.io/v1 definitions, and of the pods in them, that the manifests use, with every other
field refused: Kubernetes drops a misspelt field without a word.
"""

import copy
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from divsel_ray.cli import app

FOLDER = Path(__file__).parents[2] / "jobs" / "kuberay"
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(m|Ki|Mi|Gi|Ti)?$"}


def one_of(*values):
    return {"enum": list(values)}


def listed(items):
    return {"type": "array", "items": items, "minItems": 1}


def mapped(values):
    return {"type": "object", "additionalProperties": values}


def fields(required="", **known):
    """An object that has these fields, the required ones (by name) at least."""
    return {"type": "object", "properties": known, "required": required.split(), "additionalProperties": False}


METADATA = fields(name=TEXT, generateName=TEXT)
VOLUME = fields(
    "name",
    name=TEXT,
    persistentVolumeClaim=fields("claimName", claimName=TEXT),
    emptyDir=fields(medium=one_of("Memory"), sizeLimit=QUANTITY),
)
CONTAINER = fields(
    "name image resources",
    name=TEXT,
    image=TEXT,
    ports=listed(fields("containerPort", name=TEXT, containerPort=COUNT)),
    env=listed(fields("name value", name=TEXT, value=TEXT)),
    resources=fields(requests=mapped(QUANTITY), limits=mapped(QUANTITY)),
    volumeMounts=listed(fields("name mountPath", name=TEXT, mountPath=TEXT)),
)
TOLERATION = fields(key=TEXT, operator=one_of("Exists", "Equal"), effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"))
TEMPLATE = fields(
    "spec", spec=fields("containers", containers=listed(CONTAINER), volumes=listed(VOLUME), tolerations=listed(TOLERATION))
)
HEAD = fields(
    "template", serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"), rayStartParams=mapped(TEXT), template=TEMPLATE
)
WORKERS = fields(
    "groupName minReplicas maxReplicas template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=mapped(TEXT),
    template=TEMPLATE,
)
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=fields(mode=one_of("disabled", "token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(version=one_of("v1", "v2"), idleTimeoutSeconds=COUNT),
    headGroupSpec=HEAD,
    workerGroupSpecs=listed(WORKERS),
)
JOB = fields(
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)
CLAIM = fields(
    "accessModes resources",
    accessModes=listed(one_of("ReadWriteMany")),
    resources=fields("requests", requests=mapped(QUANTITY)),
    storageClassName=TEXT,
)
KINDS = {
    "raycluster": ("ray.io/v1", "RayCluster", CLUSTER),
    "rayjob": ("ray.io/v1", "RayJob", JOB),
    "storage": ("v1", "PersistentVolumeClaim", CLAIM),
}


def manifest(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def problems(name, document):
    """What is wrong with a document, in words."""
    version, kind, spec = KINDS[name]
    schema = fields(
        "apiVersion kind metadata spec", apiVersion={"const": version}, kind={"const": kind}, metadata=METADATA, spec=spec
    )
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("name", KINDS)
def test_a_manifest_has_known_fields_only(name):
    assert problems(name, manifest(name)) == []


def test_there_is_no_other_manifest():
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


def places(value, path=()):
    """The paths of all mappings in a document."""
    if isinstance(value, dict):
        yield path
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(one, (*path, key))


FREE = {"rayStartParams", "requests", "limits"}
"""Mappings whose keys are the user's."""


@pytest.mark.parametrize("name", KINDS)
def test_a_misspelt_field_is_seen_wherever_it_is(name):
    tried = 0
    for path in places(manifest(name)):
        if FREE & set(path):
            continue
        damaged = copy.deepcopy(manifest(name))
        place = damaged
        for key in path:
            place = place[key]
        place["misspelt"] = 1
        found = problems(name, damaged)
        assert found, path
        assert all("'misspelt' was unexpected" in problem for problem in found), found
        tried += 1
    assert tried > 3


def test_the_job_has_the_cluster_of_the_other_manifest():
    assert manifest("rayjob")["spec"]["rayClusterSpec"] == manifest("raycluster")["spec"]


@pytest.fixture
def cluster():
    return manifest("raycluster")["spec"]


def test_the_head_takes_no_work_and_workers_come_and_go(cluster):
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert all(group["minReplicas"] <= group["replicas"] < group["maxReplicas"] for group in groups.values())
    limits = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()}
    assert "nvidia.com/gpu" not in limits["cpu"]
    assert limits["gpu"]["nvidia.com/gpu"] == "1"


def pods(cluster):
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_every_pod_asks_for_what_it_may_use_and_mounts_the_shared_storage(cluster):
    claim = manifest("storage")["metadata"]["name"]
    for pod in pods(cluster):
        [container] = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        # Ray counts CPUs and memory by the limits.
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_every_call_needs_the_token_and_nothing_outside_reaches_the_ports(cluster):
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    ports = {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265}


def test_the_token_is_written_for_its_owner_alone_and_outside_the_folder_that_is_sent():
    text = (FOLDER / "raycluster.yaml").read_text()
    [written] = re.findall(r"\(umask 077; kubectl get secret divsel .* > (\S+)\)", text)
    assert written.startswith("~/")
    assert f"--token-file {written} " in text


def test_the_version_of_ray_is_the_installed_one(cluster):
    import ray

    assert cluster["rayVersion"] == ray.__version__
    assert f"rayproject/ray:{ray.__version__}-py3" in (FOLDER / "raycluster.yaml").read_text()


def test_the_job_goes_on_after_a_loss_and_its_cluster_goes_when_it_is_done():
    job = manifest("rayjob")["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    assert job["ttlSecondsAfterFinished"] > 0


def test_the_job_runs_the_script_with_arguments_that_it_has(tmp_path):
    python, script, config, *arguments = shlex.split(manifest("rayjob")["spec"]["entrypoint"])
    assert python == "python"
    root = script.removesuffix("jobs/run.py")
    assert (FOLDER.parents[1] / config.removeprefix(root)).is_file()
    # Where the configuration is not: all arguments before it are understood, and nothing is begun.
    done = CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml"), *arguments])
    assert "none.yaml: no such configuration file" in done.stderr
