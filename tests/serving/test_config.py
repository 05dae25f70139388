"""Serve configs: ours and wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from selfmoe_ray.errors import UserError
from selfmoe_ray.serving.config import parse_serve_args

CONFIGS = sorted((Path(__file__).parents[2] / "serve_configs").glob("*.yaml"))


def unknown_keys(values: Any, model: Any) -> list[str]:
    """Keys that Ray Serve would silently drop."""
    return sorted(set(values) - set(model.model_fields))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid_for_serve_and_for_us(path: Path) -> None:
    from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    values = yaml.safe_load(path.read_text())
    ServeDeploySchema.model_validate(values)
    assert not unknown_keys(values, ServeDeploySchema)
    assert not unknown_keys(values["http_options"], HTTPOptionsSchema)
    for application in values["applications"]:
        assert not unknown_keys(application, ServeApplicationSchema)
        assert application["import_path"] == "selfmoe_ray.serving.ray_serve:build"
        parse_serve_args(application["args"])
        for deployment in application["deployments"]:
            assert not unknown_keys(deployment, DeploymentSchema)


def test_the_local_config_is_reachable_from_this_machine_only() -> None:
    values = yaml.safe_load(next(path for path in CONFIGS if path.name == "mixse_local.yaml").read_text())
    assert values["http_options"]["host"] == "127.0.0.1"


def test_a_config_for_a_network_asks_for_keys() -> None:
    for path in CONFIGS:
        values = yaml.safe_load(path.read_text())
        if values["http_options"]["host"] != "127.0.0.1":
            args = parse_serve_args(values["applications"][0]["args"])
            assert args.api_key_env or args.api_key_file, path.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "mixse_dir: Field required"),
        ({"mixse_dir": "x", "modle": 1}, "modle: unknown setting"),
        ({"mixse_dir": "x", "engine": {"max_model_length": 1}}, "did you mean 'max_model_len'"),
        ({"mixse_dir": "x", "api_key": "secret"}, "api_key: unknown setting; did you mean 'api_key_env'"),
        ({"mixse_dir": "x", "api_key_env": "A", "api_key_file": "b"}, "both set; give one"),
        ({"mixse_dir": "x", "name": "a/b"}, "name: String should match pattern"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_serve_args(values)
