"""What puts a farm on machines: every command, flag and setting that it names exists."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from farm.addresses import check_redis_url
from farm.cli.app import COMMANDS
from farm.scheduler.settings import SchedulerSettings
from farm.settings import GatewaySettings
from farm_workers.worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
FILES = sorted(
    file
    for file in (*INFRA.rglob("*"), ROOT / "docs" / "several-machines.md")
    if file.is_file() and file.suffix != ".json"
)
CRD = "FARM_RAYCLUSTER_CRD"  # names KubeRay's ray.io_rayclusters.yaml
KUBERNETES = "1.32"
SETTINGS = {
    f"FARM_{field.upper()}"
    for kind in (GatewaySettings, SchedulerSettings, WorkerSettings)
    for field in kind.model_fields
}
OTHERS = {"FARM_URL", "FARM_API_KEY", "FARM_LOG_DIR", "FARM_LOG_FORMAT", CRD}  # read elsewhere

files = pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())


def text_of(file: Path) -> str:
    """Without continued lines."""
    return re.sub(r"\\\n\s*", " ", file.read_text(encoding="utf-8"))


@files
def test_every_setting_that_is_named_exists(file: Path) -> None:
    named = set(re.findall(r"\bFARM_[A-Z_]*[A-Z]\b", text_of(file)))
    assert named - SETTINGS - OTHERS == set()


@files
def test_every_command_that_is_named_exists(file: Path) -> None:
    for command in commands(text_of(file)):
        assert command in COMMANDS
    for module in re.findall(r"-m[\s,\"]+(farm[\w.]*)", text_of(file)):
        assert importlib.util.find_spec(f"{module}.__main__") is not None, module


def commands(text: str) -> list[str]:
    """The farm's, where a line, a list or code begins with ``farm``."""
    start = r"(?:^|`|\[\"?|ExecStart=/opt/farm/bin/)"
    return re.findall(rf"{start}farm\"?,? \"?([a-z]+)\b", text, flags=re.MULTILINE)


def test_the_files_of_infra_start_the_parts_of_a_farm() -> None:
    found = {command for file in FILES for command in commands(text_of(file))}
    assert {"scheduler", "worker", "up"} <= found


@files
def test_every_flag_of_ray_exists(file: Path) -> None:
    from ray.scripts.scripts import cli

    for words in ray_calls(text_of(file)):
        known = {flag for parameter in cli.commands[words[1]].params for flag in parameter.opts}
        given = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
        assert given <= known, given - known


def ray_calls(text: str) -> Iterator[list[str]]:
    """Calls in shell and in YAML's lists."""
    joined = re.sub(r"[\[\]\",>]", " ", text)
    for found in re.finditer(r"\bray\s+(start|drain-node)\b((?:\s+--?[\w$@{}~/.:=-]+)*)", joined):
        yield ["ray", found[1], *shlex.split(found[2])]


def documents(name: str) -> list[Any]:
    return [one for one in yaml.safe_load_all((INFRA / name).read_text("utf-8")) if one]


@pytest.mark.parametrize("name", ["kuberay/farm.yaml", "kuberay/secrets.yaml.example"])
def test_what_kubernetes_gets_fits_its_schemas(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_gateways_can_be_reached_while_what_all_of_them_need_is_away() -> None:
    (gateway,) = (one for one in documents("kuberay/farm.yaml") if one["kind"] == "Deployment")
    (container,) = gateway["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz"


def test_the_pods_of_the_ray_cluster_fit_the_schemas() -> None:
    (cluster,) = documents("kuberay/ray.yaml")
    spec = cluster["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        template = group["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **template}
        pod["metadata"] = {"name": "ray", **template.get("metadata", {})}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert "noDriverTimeoutSeconds" not in json.dumps(cluster)
    assert spec["authOptions"] == {"mode": "token"}
    (worker,) = spec["workerGroupSpecs"]
    pod = worker["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    (deadline,) = re.findall(r"--deadline-remaining-seconds=(\d+)", hook)
    assert int(deadline) < pod["terminationGracePeriodSeconds"]


@pytest.mark.skipif(CRD not in os.environ, reason=f"{CRD} does not name KubeRay's CRD")
def test_the_ray_cluster_fits_kuberays_own_schema() -> None:
    (cluster,) = documents("kuberay/ray.yaml")
    crd = yaml.safe_load(Path(os.environ[CRD]).read_text("utf-8"))
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for version in crd["spec"]["versions"]
        if version["name"] == "v1"
    ]
    jsonschema.Draft202012Validator(closed(schema)).validate(cluster)


def closed(schema: Any) -> Any:
    """The API server drops fields that it does not know; a test should not."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    listed = isinstance(made.get("properties"), dict) and made["properties"]
    if listed and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def test_the_parts_of_the_compose_file_belong_together() -> None:
    (compose,) = documents("compose.yaml")
    services = compose["services"]
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", (INFRA / "Dockerfile").read_text(), re.M))
    used = set()
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            used.add(source)
            assert source in compose["volumes"] or (INFRA / source).exists(), volume
        assert set(service.get("secrets", ())) <= set(compose["secrets"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if "build" in service:
            target = re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["build"]["target"])
            assert target in targets
            assert service["read_only"] is True
    assert set(compose["volumes"]) <= used


def test_grafana_starts_with_the_board_and_the_prometheus_that_it_asks() -> None:
    """Grafana itself is not needed: what it is told names things that are there."""
    (compose,) = documents("compose.yaml")
    services = compose["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    (sources,) = documents("grafana/provisioning/datasources/prometheus.yml")
    (source,) = sources["datasources"]
    assert source.keys() <= {"name", "uid", "type", "access", "url", "isDefault", "jsonData"}
    assert source["isDefault"] is True
    host, port = source["url"].removeprefix("http://").split(":")
    assert services["prometheus"]["network_mode"] == f"service:{host}"
    assert port == "9090"  # where a Prometheus listens unless it is told otherwise
    (providers,) = documents("grafana/provisioning/dashboards/farm.yml")
    (provider,) = providers["providers"]
    assert provider.keys() == {"name", "type", "options"}
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounts["./grafana/farm.json"] == home
    assert home.startswith(provider["options"]["path"] + "/")
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    board = json.loads((INFRA / "grafana" / "farm.json").read_text("utf-8"))
    (variable,) = board["templating"]["list"]
    assert variable["type"] == "datasource"
    assert variable["query"] == source["type"]
    assert sources["apiVersion"] == providers["apiVersion"] == 1


def test_what_the_compose_file_asks_for_is_made_before() -> None:
    """Every variable without a default is in the README's command."""
    asked = re.findall(r"\$\{(\w+):\?\}", (INFRA / "compose.yaml").read_text("utf-8"))
    made = re.search(r"^for name in (.*); do$", (INFRA / "README.md").read_text("utf-8"), re.M)
    assert made is not None
    assert set(made[1].split()) == set(asked)


def test_every_image_runs_as_a_user_of_its_own() -> None:
    stages = re.split(r"^FROM ", (INFRA / "Dockerfile").read_text("utf-8"), flags=re.M)[2:]
    assert len(stages) == 4
    for stage in stages:
        instructions = re.findall(r"^([A-Z]+) (.*)$", stage, flags=re.M)
        assert ("USER", "10001") in instructions
        assert instructions[-1][0] == "CMD"


def test_hosts_with_addresses_of_ipv6_get_settings_that_can_be_used(tmp_path: Path) -> None:
    made, head = tmp_path / "secrets", "fd00::11"
    store = "s3://farm/pictures?endpoint_url=https://[fd00::10]:9000"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    subprocess.run(
        [str(INFRA / "make-secrets.sh"), str(made), "fd00::10", head, "fd00::21"],
        env={"PATH": os.environ["PATH"], "FARM_STORE": store, **keys},
        check=True,
        capture_output=True,
    )
    lines = (made / head / "farm.env").read_text("utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines)
    assert urlsplit(check_redis_url(settings["REDIS_URL"])).hostname == "fd00::10"
    assert settings["RAY_ADDRESS"] == "[fd00::11]:6379"
    assert settings["AWS_CA_BUNDLE"] == "/etc/farm/ca.pem"


def test_the_queues_server_lets_no_one_in_without_a_password_and_reads_its_file() -> None:
    """Redis 7.0 replays a script's writes as the user ``default``, with that user's rights."""
    users = (INFRA / "valkey" / "users.acl").read_text("utf-8").splitlines()
    assert users[0] == "user default off ~* &* +@all"
    assert all("nopass" not in user for user in users)


def test_a_worker_may_touch_its_pictures_only() -> None:
    policy = json.loads((INFRA / "s3" / "policy.json").read_text("utf-8"))
    for statement in policy["Statement"]:
        actions = statement["Action"]
        assert "*" not in json.dumps(actions)
        whole_bucket = statement["Resource"].endswith(":farm")
        assert not whole_bucket or statement["Condition"]["StringLike"]["s3:prefix"]
