"""The files in cluster/ against the schemas of those who read them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfmoe_ray.run.config_file import load_config
from selfmoe_ray.serving.config import parse_serve_args

ROOT = Path(__file__).parents[2]
# Data that stays out of the project; the tests that read it are left out where it is missing.
SCHEMAS = ROOT.parent / "shared" / "kuberay-crds"
MANIFESTS = ["rayjob.yaml", "raycluster.yaml", "rayservice.yaml"]


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def clusters(value: Any) -> Iterator[dict[str, Any]]:
    """Every cluster's spec in a manifest."""
    if isinstance(value, dict):
        if "headGroupSpec" in value:
            yield value
        for each in value.values():
            yield from clusters(each)


def refuse_unknown_keys(schema: Any) -> Any:
    """The schema with every object closed, unless it says that it keeps what it does not know."""
    if isinstance(schema, list):
        return [refuse_unknown_keys(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: refuse_unknown_keys(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed


@pytest.mark.skipif(not SCHEMAS.exists(), reason="KubeRay's schemas are not beside the project")
@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_knows_every_key(name: str) -> None:
    import jsonschema

    described = manifest(name)
    schema = json.loads((SCHEMAS / f"{described['kind']}.v1.schema.json").read_text())
    # Kubernetes' own metadata, which the schema leaves open.
    assert set(described.pop("metadata")) == {"name"}
    validator = jsonschema.Draft202012Validator(refuse_unknown_keys(schema))
    assert not [f"{error.json_path}: {error.message}" for error in validator.iter_errors(described)]
    described["spec"]["rayVersoin"] = "2"
    assert list(validator.iter_errors(described))


@pytest.mark.parametrize("name", MANIFESTS)
def test_clusters_run_the_tested_ray_with_a_token_shared_memory_and_the_runs(name: str) -> None:
    (cluster,) = clusters(manifest(name))
    assert cluster["rayVersion"] == metadata.version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/runs"]]
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_jobs_config_is_one_of_ours_on_the_mounted_storage() -> None:
    program, *options = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])[1:]
    assert (ROOT / program).exists()
    values = dict(zip(options[::2], options[1::2], strict=True))
    config = load_config(str(ROOT / values["--config"]), [values["--set"]])
    assert config.root == "/runs"


@pytest.mark.parametrize("place", ["cluster/rayservice.yaml", "serve_configs/mixse.yaml"])
def test_serve_and_our_own_settings_know_every_key(place: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    text = (ROOT / place).read_text()
    described = yaml.safe_load(text)
    config = yaml.safe_load(described["spec"]["serveConfigV2"]) if place.startswith("cluster") else described
    ServeDeploySchema.model_validate(config)
    # It takes any other key without a word.
    assert set(config) <= set(ServeDeploySchema.model_fields)
    (application,) = config["applications"]
    assert application["import_path"] == "selfmoe_ray.serving.ray_serve:build"
    args = parse_serve_args(application["args"], place)
    assert args.api_key_env == "MIXSE_API_KEYS" and args.api_key_env in text


@pytest.mark.parametrize("name", ["launcher-local.yaml", "launcher-aws.yaml", "launcher-gcp.yaml"])
def test_rays_launcher_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    described = manifest(name)
    validate_config(prepare_config(described))
    starts = [*described["head_start_ray_commands"], *described["worker_start_ray_commands"]]
    assert sum("RAY_AUTH_MODE=token" in command for command in starts) == 2
    assert any(place.endswith(".ray/auth_token") for place in described["file_mounts"])
    with pytest.raises(Exception, match=r"(?i)additional properties|unexpected"):
        validate_config({**prepare_config(described), "max_wokrers": 1})


def test_the_image_is_made_of_what_is_there() -> None:
    lines = (ROOT / "cluster/Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert copied and all((ROOT / each).exists() for each in copied)
    sent = (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    assert all(f"!{each.split('/')[0]}" in sent for each in copied), "what is copied is sent to the builder"
    assert "RUN requirements/install.sh ${DEVICE}" in lines
    assert {path.stem for path in (ROOT / "requirements").glob("*.lock")} == {"cpu", "cuda"}


def test_every_file_names_the_image_of_this_version() -> None:
    from selfmoe_ray import __version__

    for path in (ROOT / "cluster").glob("*.yaml"):
        images = re.findall(r"(?m)image: (?:REGISTRY/)?(\S+)$", path.read_text())
        assert set(images) <= {f"selfmoe-ray:{__version__}"}, path
