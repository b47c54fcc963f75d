"""The files of cluster/ are what Ray's launcher and Kubernetes take, and name what this house has."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from urbancross import cli
from urbancross.command_line import from_command_line

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
KUBERNETES = "1.33"


def fields(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


# Of KubeRay's v1 resources, the fields that are used here, with the types of its API; their pods are Kubernetes' own.
# The operator passes over a misspelt one without a word.
COUNT, TEXTS = {"type": "integer", "minimum": 0}, {"type": "object", "additionalProperties": {"type": "string"}}
POD = {"type": "object", "required": ["spec"]}
AUTOSCALER = fields(upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, idleTimeoutSeconds=COUNT)
WORKERS = fields(
    groupName={"type": "string"},
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_CLUSTER = fields(
    rayVersion={"type": "string"},
    authOptions=fields(mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=fields(rayStartParams=TEXTS, template=POD),
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_JOB = fields(
    clusterSelector=TEXTS,
    entrypoint={"type": "string"},
    runtimeEnvYAML={"type": "string"},
    backoffLimit=COUNT,
    submitterPodTemplate=POD,
)


def documents(name: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text())}


def test_the_launchers_file_is_what_ray_up_takes():
    told = prepare_config(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))
    validate_config(told)
    types = told["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert types["head"]["resources"] == {"CPU": 0}  # no actor takes the head down
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert all(kind["node_config"]["ImageId"] == "AMI" for kind in types.values())  # Ray's own are not in every region
    for kind in ("cpu", "gpu"):
        assert types[kind]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types[kind]["max_workers"] <= told["max_workers"]
    assert "--dashboard-host 127.0.0.1" in told["head_start_ray_commands"][-1]


def test_the_launchers_file_is_refused_where_a_field_is_misspelt():
    told = prepare_config(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))
    with pytest.raises(Exception, match="Additional properties|unexpected"):
        validate_config(told | {"idle_timeout_minuets": 5})


@pytest.mark.parametrize("kind", ["ServiceAccount", "NetworkPolicy"])
def test_kubernetes_own_resources_fit_its_schema(kind: str):
    kubernetes_validate.validate(documents("cluster.yaml")[kind], KUBERNETES, strict=True)


def test_the_ray_cluster_has_the_fields_of_kuberay_and_pods_of_kubernetes():
    spec = documents("cluster.yaml")["RayCluster"]["spec"]
    jsonschema.validate(spec, RAY_CLUSTER)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        a_pod(pod)
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["securityContext"]["runAsNonRoot"]


def test_a_misspelt_field_of_kuberay_is_found():
    spec = documents("cluster.yaml")["RayCluster"]["spec"]
    for wrong in ({"idleTimeoutSecond": 600}, {"idleTimeoutSeconds": "600"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spec | {"autoscalerOptions": spec["autoscalerOptions"] | wrong}, RAY_CLUSTER)


def test_the_ray_job_runs_a_verb_of_this_house_on_that_cluster():
    job, cluster = documents("job.yaml")["RayJob"], documents("cluster.yaml")["RayCluster"]
    jsonschema.validate(job["spec"], RAY_JOB)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    a_pod(job["spec"]["submitterPodTemplate"]["spec"])
    assert set(yaml.safe_load(job["spec"]["runtimeEnvYAML"])) == {"env_vars"}
    python, page, *flags = job["spec"]["entrypoint"].split()
    verb = Path(page).stem
    assert (python, page) == ("python", f"/opt/urbancross/jobs/{verb}.py")
    config = from_command_line(cli.VERBS[verb].kind, flags, verb)
    assert config.workers == cluster["spec"]["workerGroupSpecs"][1]["maxReplicas"]  # type: ignore[attr-defined]
    (policy,) = documents("cluster.yaml")["NetworkPolicy"]["spec"]["ingress"]
    labels = job["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": labels}} in policy["from"]


def a_pod(spec: dict[str, Any]) -> None:
    told = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    kubernetes_validate.validate(told, KUBERNETES, strict=True)


def test_a_misspelt_field_of_a_pod_is_found():
    with pytest.raises(kubernetes_validate.ValidationError):
        a_pod({"containers": [{"name": "c", "image": "i", "resourcez": {}}]})


def test_the_image_copies_what_is_there_and_installs_what_is_pinned():
    text = (CLUSTER / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
    pins = dict(line.split("==") for line in (CLUSTER / "pins.txt").read_text().split())
    assert set(pins) == {"apache-tvm-ffi", "torch", "torchvision", "vllm"}
    constraints = (ROOT / "constraints.txt").read_text()
    ray = documents("cluster.yaml")["RayCluster"]["spec"]["rayVersion"]
    assert f"\nray=={ray}\n" in constraints
    for name in ("torch", "torchvision"):  # the images' PyTorch is this environment's, to the second number
        (here,) = re.findall(rf"^{name}==(\d+\.\d+)\.", constraints, re.MULTILINE)
        assert pins[name].startswith(f"{here}.")
