"""Files of infra/ for Kubernetes, MLflow, images, metrics and clouds: typos, secrets and loose versions are refused.

Checks in Python always run, those by KubeRay's definition too: rayjob.schema.json names its source. Those by the
engines' own tools run where the tool lies on PATH or in a folder of DGUNET_TEST_TOOLS.
"""

import configparser
import copy
import json
import operator
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from factories import PROJECT

from pipeline.runtime.environment import Environment, variable_name

INFRA = PROJECT / "infra"
FIELDS = yaml.safe_load(Path(__file__).with_name("fields.yaml").read_text())
OVERLAYS = ["base", "overlays/gpu-spot", "overlays/kueue"]
CHECKED = {  # files, and their kind in fields.yaml
    "kuberay/base/rayjob.yaml": "rayjob",
    "kuberay/base/networkpolicy.yaml": "networkpolicy",
    "kuberay/podmonitor.yaml": "podmonitor",
    **{f"kuberay/{overlay}/kustomization.yaml": "kustomization" for overlay in OVERLAYS},
    "mlflow/values.yaml": "values",
    "mlflow/compose.yaml": "compose",
    "sky/dgunet.yaml": "sky",
    "grafana/rules.yaml": "rules",
    "grafana/dgunet.json": "dashboard",
}
METRICS = {
    f"ray_dgunet_{name}"
    for name in ("images_per_second", "waiting_share", "loss", "val_psnr", "lost_workers", "checkpoint_age_seconds")
}
TEXTS = sorted(path for path in INFRA.rglob("*") if path.is_file() and path.suffix != ".pyc")
DOCKERFILES = sorted(INFRA.rglob("*.Dockerfile"))
SCRIPTS = sorted(INFRA.rglob("*.sh"))
Edit = Callable[[Any], object]


def load(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


def job() -> Any:
    return load("kuberay/base/rayjob.yaml")


# Fields: names, types, missing ones


def wrong_fields(value: Any, fields: Any, path: str = "") -> Iterator[str]:
    """The faults of `value` against a part of fields.yaml."""
    if isinstance(fields, dict):
        known = {name.rstrip("~"): part for name, part in fields.items()}
        if not isinstance(value, dict):
            yield f"{path} must be an object"
            return
        yield from (f"{path}.{name} is unknown" for name in value.keys() - known.keys())
        yield from (f"{path}.{name} is missing" for name in fields if name[-1] != "~" and name not in value)
        for name in value.keys() & known.keys():
            yield from wrong_fields(value[name], known[name], f"{path}.{name}")
    elif isinstance(fields, list):
        if not isinstance(value, list):
            yield f"{path} must be a list"
            return
        for index, item in enumerate(value):
            yield from wrong_fields(item, *fields[:1] or ["nothing"], path=f"{path}[{index}]")
    elif fields.startswith("="):
        if value not in fields[1:].split("|"):
            yield f"{path} must be {fields[1:]}, not {value!r}"
    elif not {
        "str": isinstance(value, str) and value != "",
        "int": type(value) is int,
        "bool": isinstance(value, bool),
        "null": value is None,
        "map": isinstance(value, dict) and all(isinstance(item, str | list) for item in value.values()),
        "any": True,
    }.get(fields, False):
        yield f"{path} must be {fields}, not {value!r}"


@pytest.mark.parametrize("name", CHECKED)
def test_fields_are_known_and_complete(name: str) -> None:
    assert list(wrong_fields(load(name), FIELDS[CHECKED[name]])) == []


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field and item."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from places(part, (*path, name))


@pytest.mark.parametrize("name", CHECKED)
def test_a_typo_in_any_field_and_any_missing_field_is_found(name: str) -> None:
    content, fields = json.loads(json.dumps(load(name))), FIELDS[CHECKED[name]]  # JSON: without YAML's shared parts
    missed = []
    for *path, field in places(content):
        known = fields_at(fields, path)
        if not isinstance(known, dict):
            continue  # an item of a list, or a name that is the user's own
        for typo in (True, False) if field in known else (True,):
            changed = copy.deepcopy(content)
            around = reduce(operator.getitem, path, changed)
            around.update({f"{field}x": around.pop(field)} if typo else {})
            around.pop(field, None)
            missed += [] if list(wrong_fields(changed, fields)) else [(*path, field)]
    assert missed == []


def fields_at(fields: Any, path: list[Any]) -> Any:
    for name in path:
        if isinstance(fields, str):
            return None
        fields = fields[0] if isinstance(fields, list) else fields.get(name, fields.get(f"{name}~"))
    return fields


def test_every_file_of_infra_is_checked() -> None:
    written = {path.relative_to(INFRA).as_posix() for path in TEXTS if path.suffix in (".yaml", ".json")}
    assert {name for name in written if not name.startswith(("recipes/", "degradations"))} == set(CHECKED)


# The RayJob: rules of the operator (v1.7.0, validation.go), which its definitions do not hold


def refused_by_the_operator(rayjob: Any) -> list[str]:
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *groups)]
    autoscaling, ends = cluster.get("enableInTreeAutoscaling", False), spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    keys = [(rule["condition"]["jobStatus"], rule["policy"]) for rule in rules]
    order = {"DeleteWorkers": 0, "DeleteCluster": 1, "DeleteSelf": 2}
    ranks = sorted(
        (rule["condition"]["jobStatus"], order[rule["policy"]], rule["condition"]["ttlSeconds"]) for rule in rules
    )
    variables = {each["name"] for pod in pods for each in pod["containers"][0].get("env", [])}
    numbers = [int(part) for part in cluster.get("rayVersion", "0").split(".")]
    faults = {
        "name": not re.fullmatch("[a-z]([-a-z0-9]{0,45}[a-z0-9])?", rayjob["metadata"]["name"]),
        "suspend needs shutdownAfterJobFinishes": spec.get("suspend", False) and not ends,
        "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": "ttlSecondsAfterFinished" in spec and not ends,
        "deletionRules exclude shutdownAfterJobFinishes": bool(rules) and ends,
        "deletionRules are empty": "deletionStrategy" in spec and not rules,
        "two rules are the same": len(set(keys)) < len(keys),
        "DeleteWorkers excludes the autoscaler": autoscaling and any(key[1] == "DeleteWorkers" for key in keys),
        "a later stage of deletion comes first": any(
            one[0] == two[0] and one[2] > two[2] for one, two in pairwise(ranks)
        ),
        "SidecarMode takes no submitter": spec["submissionMode"] == "SidecarMode"
        and bool({"submitterPodTemplate", "submitterConfig", "clusterSelector"} & spec.keys()),
        "restartPolicy": any(pod.get("restartPolicy", "Never") != "Never" for pod in pods),
        "replicas": any(not 0 <= each["minReplicas"] <= each["maxReplicas"] for each in groups),
        "the autoscaler's version is given twice": "RAY_enable_autoscaler_v2" in variables,
        "token needs rayVersion 2.52": cluster["authOptions"]["mode"] == "token" and numbers < [2, 52],
        "a feature gate is needed": bool({"networkPolicy", "tlsOptions", "historyServerOptions"} & cluster.keys())
        or cluster.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb",
        "resources are given twice": any(group.get("resources") for group in (cluster["headGroupSpec"], *groups)),
    }
    return [name for name, fault in faults.items() if fault]


def cluster_of(rayjob: Any) -> Any:
    return rayjob["spec"]["rayClusterSpec"]


REFUSED: dict[str, Edit] = {
    "name": lambda rayjob: rayjob["metadata"].update(name="DGUNet"),
    "suspend needs shutdownAfterJobFinishes": lambda rayjob: rayjob["spec"].update(suspend=True),
    "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": lambda rayjob: rayjob["spec"].update(
        ttlSecondsAfterFinished=1
    ),
    "deletionRules exclude shutdownAfterJobFinishes": lambda rayjob: rayjob["spec"].update(
        shutdownAfterJobFinishes=True
    ),
    "deletionRules are empty": lambda rayjob: rayjob["spec"]["deletionStrategy"].update(deletionRules=[]),
    "two rules are the same": lambda rayjob: rayjob["spec"]["deletionStrategy"].update(
        deletionRules=[*rayjob["spec"]["deletionStrategy"]["deletionRules"]] * 2
    ),
    "DeleteWorkers excludes the autoscaler": lambda rayjob: rayjob["spec"]["deletionStrategy"]["deletionRules"][
        0
    ].update(policy="DeleteWorkers"),
    "a later stage of deletion comes first": lambda rayjob: rayjob["spec"]["deletionStrategy"]["deletionRules"][2][
        "condition"
    ].update(ttlSeconds=1),
    "SidecarMode takes no submitter": lambda rayjob: rayjob["spec"].update(submitterConfig={"backoffLimit": 1}),
    "restartPolicy": lambda rayjob: cluster_of(rayjob)["headGroupSpec"]["template"]["spec"].update(
        restartPolicy="Always"
    ),
    "replicas": lambda rayjob: cluster_of(rayjob)["workerGroupSpecs"][0].update(minReplicas=9),
    "the autoscaler's version is given twice": lambda rayjob: cluster_of(rayjob)["headGroupSpec"]["template"]["spec"][
        "containers"
    ][0]["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
    "token needs rayVersion 2.52": lambda rayjob: cluster_of(rayjob).pop("rayVersion"),
    "a feature gate is needed": lambda rayjob: cluster_of(rayjob).update(tlsOptions={"enabled": True}),
    "resources are given twice": lambda rayjob: cluster_of(rayjob)["headGroupSpec"].update(resources={"CPU": "1"}),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_the_operator_refuses_is_refused(fault: str) -> None:
    rayjob = job()
    REFUSED[fault](rayjob)
    assert fault in refused_by_the_operator(rayjob)


# The RayJob: rules of this project


def unsound(rayjob: Any, settings: dict[str, str]) -> list[str]:
    cluster = cluster_of(rayjob)
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (head, *workers)]
    containers = [pod["containers"][0] for pod in pods]
    least, _, most = settings["DGUNET_WORKERS"].partition(":")
    labels = [group["template"]["metadata"]["labels"] for group in (head, *workers)]
    policy = load("kuberay/base/networkpolicy.yaml")["spec"]
    faults = {
        "rayVersion": f"ray=={cluster.get('rayVersion')}\n" not in (PROJECT / "constraints.txt").read_text(),
        "images": len({each["image"] for each in containers}) != 1,
        "head has CPUs": head["rayStartParams"].get("num-cpus") != "0",
        "head on spot": "affinity" not in pods[0] or "tolerations" in pods[0],
        "workers": int(least) > sum(each["minReplicas"] for each in workers)
        or int(most or least) != sum(each["maxReplicas"] for each in workers),
        "limits": any(set(each["resources"].get("limits", {})) < {"cpu", "memory"} for each in containers),
        "root": any(not pod["securityContext"].get("runAsNonRoot") for pod in pods)
        or any(each["securityContext"].get("allowPrivilegeEscalation", True) for each in containers),
        "shm": any(
            not any(volume.get("emptyDir", {}).get("medium") == "Memory" for volume in pod["volumes"])
            or not any(mount["mountPath"] == "/dev/shm" for mount in pod["containers"][0]["volumeMounts"])
            for pod in pods
        ),
        "secret": any({"secretRef": {"name": "dgunet"}} not in each["envFrom"] for each in containers),
        "open ports": any(policy["podSelector"]["matchLabels"].items() - each.items() for each in labels)
        or policy["policyTypes"] != ["Ingress"]
        or any(not rule.get("from") or {} in rule["from"] for rule in policy["ingress"]),
    }
    return [name for name, fault in faults.items() if fault]


def settings_of(overlay: str) -> dict[str, str]:
    generators = [each for name in {"base", overlay} for each in kustomization(name).get("configMapGenerator", [])]
    generators.sort(key=lambda each: "behavior" in each)  # what an overlay merges comes last
    return dict(literal.split("=", 1) for each in generators for literal in each["literals"])


def kustomization(overlay: str) -> Any:
    return load(f"kuberay/{overlay}/kustomization.yaml")


def patched(overlay: str) -> Any:
    """The RayJob of an overlay, without kubectl."""
    rayjob = json.loads(json.dumps(job()))
    for patch in kustomization(overlay).get("patches", []):
        for step in yaml.safe_load(patch["patch"]):
            *path, last = [part.replace("~1", "/") for part in step["path"].split("/")[1:]]
            around = reduce(lambda value, name: value[int(name) if isinstance(value, list) else name], path, rayjob)
            if step["op"] != "add":
                del around[last]
            if step["op"] != "remove":
                around[last] = step["value"]
    return rayjob


UNSOUND: dict[str, Edit] = {
    "rayVersion": lambda cluster: cluster.update(rayVersion="2.59.0"),
    "images": lambda cluster: cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(image="other"),
    "head has CPUs": lambda cluster: cluster["headGroupSpec"].update(rayStartParams={}),
    "head on spot": lambda cluster: cluster["headGroupSpec"]["template"]["spec"].pop("affinity"),
    "workers": lambda cluster: cluster["workerGroupSpecs"][0].update(maxReplicas=7),
    "limits": lambda cluster: cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"].pop("limits"),
    "root": lambda cluster: cluster["headGroupSpec"]["template"]["spec"]["securityContext"].pop("runAsNonRoot"),
    "shm": lambda cluster: cluster["workerGroupSpecs"][0]["template"]["spec"]["volumes"][0].update(emptyDir={}),
    "secret": lambda cluster: cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(envFrom=[]),
    "open ports": lambda cluster: cluster["workerGroupSpecs"][0]["template"]["metadata"].update(labels={"a": "b"}),
}


def not_scraped(rayjob: Any, monitor: Any) -> list[str]:
    """The groups of pods that the PodMonitor does not find, or whose metrics the NetworkPolicy closes to Prometheus."""
    cluster, spec = cluster_of(rayjob), monitor["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    *_, prometheus = load("kuberay/base/networkpolicy.yaml")["spec"]["ingress"]
    missed = []
    for name, group in {"head": cluster["headGroupSpec"], "workers": cluster["workerGroupSpecs"][0]}.items():
        template = group["template"]
        numbers = {each["name"]: each["containerPort"] for each in template["spec"]["containers"][0]["ports"]}
        found = spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        if not found or {"port": numbers.get(endpoint["port"])} not in prometheus["ports"]:
            missed.append(name)
    return missed


def test_prometheus_finds_the_metrics_of_all_pods() -> None:
    monitor = load("kuberay/podmonitor.yaml")
    assert not_scraped(job(), monitor) == []
    for edit in (
        lambda monitor: monitor["spec"]["podMetricsEndpoints"][0].update(port="dashboard"),
        lambda monitor: monitor["spec"]["selector"].update(matchLabels={"app.kubernetes.io/name": "other"}),
    ):
        wrong = copy.deepcopy(monitor)
        edit(wrong)
        assert not_scraped(job(), wrong) == ["head", "workers"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_job_is_sound(overlay: str) -> None:
    assert list(wrong_fields(patched(overlay), FIELDS["rayjob"])) == []
    assert refused_by_the_operator(patched(overlay)) == []
    assert unsound(patched(overlay), settings_of(overlay)) == []


@pytest.mark.parametrize("fault", UNSOUND)
def test_an_unsound_job_is_refused(fault: str) -> None:
    rayjob = copy.deepcopy(json.loads(json.dumps(job())))
    UNSOUND[fault](cluster_of(rayjob))
    assert unsound(rayjob, settings_of("base")) == [fault]


# All files: secrets, versions, variables

SECRET = r"(?:password|passwd|token|secret|secret_key|access_key|access_key_id|api_key)"
REFERENCE = r"(?:null|true|false|token)\b|\$|…|[{}]|\s|$|[\"']"
LITERAL = rf"(?im)^.*?\b\w*{SECRET}[\"']?[ \t]*(?::-|=|:(?![-?]))[ \t]*[\"']?(?!{REFERENCE})([^\s\"',}}]+)"


def plain_secrets(text: str) -> list[str]:
    text = re.sub(r"(?m)(^|\s)#.*$", "", text)  # prose; detect-secrets reads it too
    found = [match.group(0).strip() for match in re.finditer(LITERAL, text)]
    found += re.findall(r"://[^/\s:@]+:[^/\s@$…]+@", text)
    pairs = re.finditer(rf"(?i)name:\s*[\"']?(\w*{SECRET})[\"']?,?\s*value:\s*[\"']?(?!\$)(\S+)", text)
    return found + [match.group(0) for match in pairs]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(INFRA).as_posix())
def test_no_file_holds_a_secret(path: Path) -> None:
    assert plain_secrets(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "      POSTGRES_PASSWORD: hunter2",
        "    literals: [MLFLOW_TRACKING_PASSWORD=hunter2]",
        "admin_password = hunter2",
        "- {name: AWS_SECRET_ACCESS_KEY, value: abc/def}",
        "- name: RAY_AUTH_TOKEN\n  value: 12ab",
        "ENV AWS_ACCESS_KEY_ID=abcdef",
        "backendStoreUri: postgresql://mlflow:hunter2@postgres/mlflow",
        '"token": "12ab"',
        "export RAY_AUTH_TOKEN='12ab'",
        "A_PASSWORD: ${A_PASSWORD:-hunter2}",
    ],
)
def test_a_secret_is_found(line: str) -> None:
    assert len(plain_secrets(f"a: b\n{line}\nc: d\n")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "A_PASSWORD: ${A_PASSWORD:?set it}",
        "A_TOKEN=",
        "A_TOKEN: null",
        "RAY_AUTH_MODE: token",
        "secretRef: {name: a}",
        "A_TOKEN=${A_TOKEN:-$(openssl rand -hex 32)}",
        '[ -z "${A_TOKEN:-}" ]',
    ],
)
def test_a_reference_is_no_secret(line: str) -> None:
    assert plain_secrets(f"a: b\n{line}\nc: d\n") == []


def loose_versions(text: str, pinned: tuple[str, ...] = ()) -> list[str]:
    """Images without a version, or with one that moves; `pinned` get theirs elsewhere."""
    names = re.findall(r"(?m)^\s*(?:- )?(?:image:|FROM)[ \t]+[\"']?([^\s\"'#]+)", text)
    loose = [name for name in names if not re.search(r":[\w.-]+$|@sha256:|^\$\{BASE\}$", name) and name not in pinned]
    return loose + re.findall(r"(?m)(?::|[tT]ag:|VERSION=)\s*[\"']?latest\b", text)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(INFRA).as_posix())
def test_versions_are_pinned(path: Path) -> None:
    images = kustomization("base")["images"]
    assert loose_versions(path.read_text(), tuple(image["name"] for image in images)) == []


@pytest.mark.parametrize(
    "line",
    ["  image: postgres", "image: a/b:latest", "FROM debian", "FROM debian:latest", "newTag: latest", "tag: latest"],
)
def test_a_loose_version_is_found(line: str) -> None:
    assert loose_versions(f"a: b\n{line}\n")


def unknown_variables(text: str) -> set[str]:
    known = {variable_name(field) for field in Environment.model_fields}
    return set(re.findall(r"\bDGUNET_[A-Z_]*[A-Z]\b", text)) - known


def test_the_example_of_an_environment_has_every_variable_and_no_value() -> None:
    lines = [line for line in (INFRA / ".env.example").read_text().splitlines() if line[:1] != "#"]
    settings = dict(line.split("=", 1) for line in lines)
    assert {name for name in settings if name.startswith("DGUNET_")} == set(
        map(variable_name, Environment.model_fields)
    )
    assert {name for name, value in settings.items() if value} == {"RAY_AUTH_MODE"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(INFRA).as_posix())
def test_variables_are_those_of_the_environment_class(path: Path) -> None:
    assert unknown_variables(path.read_text()) == set()


def test_a_variable_that_does_not_exist_is_found() -> None:
    assert unknown_variables("DGUNET_WORKERS=2 DGUNET_WORKER=3") == {"DGUNET_WORKER"}


# MLflow


def test_both_servers_of_mlflow_are_the_same() -> None:
    values, compose = load("mlflow/values.yaml"), load("mlflow/compose.yaml")["services"]["mlflow"]
    options = {option.partition("=")[0] for option in compose["command"] if option.startswith("--")}
    server = values["server"]
    assert options == {f"--{name.replace('_', '-')}" for name in [*server["value_options"], *server["flag_options"]]}
    assert compose["environment"]["MLFLOW_BACKEND_STORE_URI"] == values["mlflow"]["backendStoreUri"]
    assert compose["environment"]["MLFLOW_ARTIFACTS_DESTINATION"] == values["mlflow"]["artifactsDestination"]
    assert {each["name"]: each["value"] for each in values["env"]}.items() <= compose["environment"].items()
    assert compose["image"].split(":")[1] == values["image"]["tag"]
    assert f"mlflow=={values['image']['tag']}\n" in (PROJECT / "constraints.txt").read_text()


def test_users_lie_in_a_database_of_their_own_and_psycopg_3_is_named() -> None:
    users = configparser.ConfigParser()
    users.read(INFRA / "mlflow/basic_auth.ini")
    runs = load("mlflow/values.yaml")["mlflow"]["backendStoreUri"]
    assert users["mlflow"]["database_uri"] != runs
    assert users["mlflow"]["database_uri"].startswith("postgresql+psycopg://")
    assert runs.startswith("postgresql+psycopg://")
    database = users["mlflow"]["database_uri"].rpartition("/")[2]
    assert load("mlflow/compose.yaml")["configs"]["databases"]["content"] == f"CREATE DATABASE {database};"


def test_compose_has_no_default_for_a_key_and_opens_no_port_to_others() -> None:
    text = (INFRA / "mlflow/compose.yaml").read_text()
    keys = re.findall(r"\$\{(\w+)(:\?)?", text)
    assert {name for name, refuses in keys if not refuses} == {"S3_LISTEN", "MLFLOW_LISTEN", "MLFLOW_ALLOWED_HOSTS"}
    listening = [
        port for service in load("mlflow/compose.yaml")["services"].values() for port in service.get("ports", [])
    ]
    assert listening
    assert all(re.match(r"\$\{\w+_LISTEN:-127\.0\.0\.1\}:", port) for port in listening)


# The engines' own tools


def tool(name: str) -> str:
    folders = os.pathsep.join([os.environ.get("DGUNET_TEST_TOOLS", ""), os.environ["PATH"]])
    found = shutil.which(name, path=folders.strip(os.pathsep))
    if not found:
        pytest.skip(f"needs {name}: put it on PATH, or name its folder in DGUNET_TEST_TOOLS")
    return found


def run(*command: str | Path, text: str | None = None, folder: Path = PROJECT) -> tuple[int, str]:
    done = subprocess.run(
        [*map(str, command)], input=text, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


@cache
def rendered(folder: Path) -> dict[str, Any]:
    status, output = run(tool("kubectl"), "kustomize", folder)
    assert status == 0, output
    return {document["kind"]: document for document in yaml.safe_load_all(output)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_renders_is_valid(overlay: str) -> None:
    objects = copy.deepcopy(rendered(INFRA / "kuberay" / overlay))
    assert objects.keys() == {"RayJob", "NetworkPolicy", "ConfigMap"}
    assert list(wrong_fields(objects["RayJob"], FIELDS["rayjob"])) == []
    assert list(wrong_fields(objects["NetworkPolicy"], FIELDS["networkpolicy"])) == []
    assert refused_by_the_operator(objects["RayJob"]) == []
    assert unsound(objects["RayJob"], objects["ConfigMap"]["data"]) == []
    assert {*places(objects["RayJob"])} - {("metadata", "namespace")} == {*places(patched(overlay))}
    assert loose_versions(yaml.safe_dump(objects)) == []
    assert {each["metadata"]["namespace"] for each in objects.values()} == {"dgunet"}


def test_overlays_say_what_their_names_do() -> None:
    (workers,) = cluster_of(rendered(INFRA / "kuberay/overlays/gpu-spot")["RayJob"])["workerGroupSpecs"]
    spec = workers["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= {each["key"] for each in spec["tolerations"]}
    queued = rendered(INFRA / "kuberay/overlays/kueue")["RayJob"]
    assert queued["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "dgunet"}
    assert queued["spec"]["suspend"]


def test_a_patch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    shutil.copytree(INFRA / "kuberay", tmp_path / "kuberay")
    file = tmp_path / "kuberay/overlays/gpu-spot/kustomization.yaml"
    file.write_text(file.read_text().replace("workerGroupSpecs/0", "workerGroups/0"))
    with pytest.raises(AssertionError, match="workerGroups"):
        rendered(file.parent)


@cache
def definition() -> Any:
    return strict(json.loads(Path(__file__).with_name("rayjob.schema.json").read_text()))


def strict(schema: Any) -> Any:
    """A schema that refuses unknown fields. The API server sets defaults before it asks what is required."""
    if not isinstance(schema, dict):
        return schema
    result = {name: value for name, value in schema.items() if name not in ("default", "properties")}
    for name in ("items", "additionalProperties"):
        if name in schema:
            result[name] = strict(schema[name])
    if "$defs" in schema:
        result["$defs"] = {name: strict(part) for name, part in schema["$defs"].items()}
    if "properties" in schema:
        parts = schema["properties"]
        result["properties"] = {name: strict(part) for name, part in parts.items()}
        result["required"] = [name for name in schema.get("required", []) if "default" not in parts.get(name, {})]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    return result


def against_the_definition(rayjob: Any) -> list[str]:
    errors = jsonschema.Draft202012Validator(definition()).iter_errors(rayjob)
    return [f"{error.json_path}: {error.message}" for error in errors]


def test_the_job_fits_the_definition_of_kuberay() -> None:
    assert against_the_definition(job()) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rendered_jobs_fit_the_definition_of_kuberay(overlay: str) -> None:
    assert against_the_definition(rendered(INFRA / "kuberay" / overlay)["RayJob"]) == []


def test_the_definition_refuses_unknown_missing_and_wrong_fields() -> None:
    for edit in (
        lambda rayjob: rayjob["spec"].update(backofLimit=3),
        lambda rayjob: cluster_of(rayjob)["workerGroupSpecs"][0]["template"]["spec"].update(toleration=[]),
        lambda rayjob: cluster_of(rayjob).pop("headGroupSpec"),
        lambda rayjob: cluster_of(rayjob)["authOptions"].update(mode="tokens"),
        lambda rayjob: rayjob["spec"].update(backoffLimit="3"),
    ):
        rayjob = job()
        edit(rayjob)
        assert len(against_the_definition(rayjob)) == 1
    assert strict({"properties": {"a": {"default": 1}, "b": {}}, "required": ["a", "b"]})["required"] == ["b"]


def kubernetes_faults(objects: list[Any], folder: Path) -> str:
    file = folder / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    status, output = run(tool("kubernetes-validate"), "--strict", file)
    return "" if status == 0 else output


def builtin_objects(overlay: str) -> list[Any]:
    objects = copy.deepcopy(rendered(INFRA / "kuberay" / overlay))
    cluster = cluster_of(objects.pop("RayJob"))
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    pods = [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]
    for number, pod in enumerate(pods):
        pod["metadata"]["name"] = f"pod-{number}"
    return [*objects.values(), *pods]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_the_objects_and_pods(overlay: str, tmp_path: Path) -> None:
    assert kubernetes_faults(builtin_objects(overlay), tmp_path) == ""


def test_kubernetes_refuses_a_typo(tmp_path: Path) -> None:
    objects = builtin_objects("base")
    assert "fromm" in kubernetes_faults(
        [{**objects[1], "spec": {**objects[1]["spec"], "ingress": [{"fromm": []}]}}], tmp_path
    )
    objects[-1]["spec"]["containers"][0]["volumeMount"] = []
    assert "volumeMount" in kubernetes_faults(objects[-1:], tmp_path)


def test_the_schema_of_compose_takes_the_file_and_refuses_a_typo(tmp_path: Path) -> None:
    checker = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    file = INFRA / "mlflow/compose.yaml"
    assert run(*checker, file)[0] == 0
    planted = tmp_path / "compose.yaml"
    planted.write_text(file.read_text().replace("image: postgres", "imagee: postgres"))
    status, output = run(*checker, planted)
    assert status != 0
    assert "imagee" in output


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_takes_the_dockerfile_and_refuses_latest(path: Path) -> None:
    assert run(tool("hadolint"), path) == (0, "")
    planted = path.read_text().replace("FROM ${BASE}", "FROM debian:latest")
    assert "DL3007" in run(tool("hadolint"), "-", text=planted)[1]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_a_user_and_hold_what_the_lock_says(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"(?m)^USER (.*)$", text) == ["10001"]
    assert re.findall(r"(?m)^(?:ARG BASE.*|FROM .*)$", text) == ["ARG BASE", "FROM ${BASE}"]
    assert all("--constraint" in line or "--no-deps" in line for line in re.findall(r"pip install (.*)$", text, re.M))
    copied = re.findall(r"(?m)^COPY (?:--\S+ )?(.*) \S+$", text)
    assert all((PROJECT / name).exists() for names in copied for name in names.split())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_takes_the_script(path: Path) -> None:
    assert run(tool("shellcheck"), path) == (0, "")
    assert os.access(path, os.X_OK)


def test_shellcheck_refuses_a_fault() -> None:
    assert "SC2086" in run(tool("shellcheck"), "-", text="#!/bin/bash\nrm $1\n")[1]


def expressions() -> dict[str, str]:
    panels = load("grafana/dgunet.json")["panels"]
    rules = load("grafana/rules.yaml")["groups"][0]["rules"]
    return {
        **{panel["title"]: target["expr"] for panel in panels for target in panel["targets"]},
        **{rule["alert"]: rule["expr"] for rule in rules},
    }


def test_dashboard_and_alerts_ask_for_metrics_that_exist() -> None:
    named = {title: set(re.findall(r"\bray_\w+", expression)) for title, expression in expressions().items()}
    assert all(names and names <= METRICS for names in named.values()), named
    panels = load("grafana/dgunet.json")["panels"]
    assert {name for panel in panels for name in named[panel["title"]]} == METRICS
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_prometheus_takes_every_expression_and_refuses_a_typo(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    for wrong in ("", "summ(ray_dgunet_loss)"):
        asked = [*expressions().values(), *([wrong] if wrong else [])]
        rules = [{"record": f"a{number}", "expr": each} for number, each in enumerate(asked)]
        file.write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": rules}]}))
        assert (run(tool("promtool"), "check", "rules", file)[0] == 0) is (not wrong)
    assert run(tool("promtool"), "check", "rules", INFRA / "grafana/rules.yaml")[0] == 0


ALERTS = {  # series, values each minute, and the alert after two hours
    "DgunetStands": ("ray_dgunet_images_per_second", "0x120"),
    "DgunetLossIsNotANumber": ("ray_dgunet_loss", "NaN " * 121),
    "DgunetWithoutCheckpoint": ("ray_dgunet_checkpoint_age_seconds", "0+60x120"),
    "DgunetLosesWorkers": ("ray_dgunet_lost_workers", "0+1x120"),
    "DgunetWaitsForBatches": ("ray_dgunet_waiting_share", "0.6x120"),
    "": ("ray_dgunet_images_per_second", "90x120"),
}


@pytest.mark.parametrize("alert", ALERTS)
def test_alerts_are_raised_when_they_should_be(alert: str, tmp_path: Path) -> None:
    assert {rule["alert"] for rule in load("grafana/rules.yaml")["groups"][0]["rules"]} == ALERTS.keys() - {""}
    series, values = ALERTS[alert]
    shutil.copy(INFRA / "grafana/rules.yaml", tmp_path)
    check = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "2h"}
    found = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values}],
        "promql_expr_test": [{**check, "exp_samples": found}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    status, output = run(tool("promtool"), "test", "rules", file)
    assert status == 0, output


def test_detect_secrets_finds_none_and_finds_a_planted_one(tmp_path: Path) -> None:
    shutil.copytree(INFRA, tmp_path / "infra")

    def scan() -> list[str]:
        status, output = run(tool("detect-secrets"), "scan", "--all-files", "infra", folder=tmp_path)
        assert status == 0, output
        return [*json.loads(output)["results"]]

    assert scan() == []
    (tmp_path / "infra/mlflow/keys.yaml").write_text(f"id: AK{'IA'}IOSFODNN7EXAMPLQ\n")
    assert scan() == ["infra/mlflow/keys.yaml"]


def test_skypilot_takes_the_task_and_refuses_a_typo(tmp_path: Path) -> None:
    python = Path(tool("sky")).with_name("python")
    check = [python, "-c", "import sys, sky; print(sky.Task.from_yaml(sys.argv[1]).num_nodes)"]
    file = INFRA / "sky/dgunet.yaml"
    status, output = run(*check, file)
    assert (status, output.split()[-1]) == (0, "2"), output
    assert load("sky/dgunet.yaml")["envs"]["DGUNET_WORKERS"] == "2"
    planted = tmp_path / "task.yaml"
    planted.write_text(file.read_text().replace("num_nodes", "num_node"))
    status, output = run(*check, planted)
    assert status != 0
    assert "num_node" in output
