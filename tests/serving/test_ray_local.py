"""`make serve` before it starts anything."""

from __future__ import annotations

import os
import re
import shlex
import socket
from pathlib import Path

import pytest

from selfmoe_ray.commands.serve import parser
from selfmoe_ray.errors import UserError
from selfmoe_ray.serving import ray_local
from selfmoe_ray.serving.config import ServeArgs

CONFIG = Path(__file__).parents[2] / "serve_configs" / "mixse_local.yaml"


def finish(run: Path, when: int) -> None:
    manifest = run / "mixse" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    os.utime(manifest, (when, when))


def test_the_run_that_was_finished_last_is_served(tmp_path: Path) -> None:
    finish(tmp_path / "b", when=3)
    finish(tmp_path / "a", when=5)
    (tmp_path / "unfinished" / "mixse").mkdir(parents=True)
    assert ray_local.newest_run(tmp_path) == tmp_path / "a"


def test_without_a_finished_run_the_way_to_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run below .*make demo.*--run"):
        ray_local.newest_run(tmp_path)


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} on 127.0.0.1 cannot be used .*--port"):
            ray_local.check_port("127.0.0.1", port)
    ray_local.check_port("127.0.0.1", port)


@pytest.mark.parametrize("text", ["", "[]", "applications: []", "{", "applications: [{name: a}]"])
def test_a_file_that_is_no_serve_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="no Serve config"):
        ray_local.read_config(str(path))
    with pytest.raises(UserError, match="cannot read"):
        ray_local.read_config(str(tmp_path / "absent.yaml"))
    assert ray_local.read_config(str(CONFIG))["applications"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], r"nowhere/mixse: no config.json"),
        (["--root", "nowhere"], r"no finished run"),
        (["--config", "nowhere.yaml"], r"--config: cannot read 'nowhere.yaml'"),
    ],
)
def test_a_mistake_is_one_message(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parsed = parser().parse_args(["--config", str(CONFIG), *arguments])
    with pytest.raises(UserError, match=message):
        ray_local.serve_run(**vars(parsed))


def test_the_curl_line_is_a_command_with_a_key_where_one_is_needed() -> None:
    text = ray_local.welcome(ServeArgs(mixse_dir="x", name="it-s"), "http://127.0.0.1:1")
    command = re.search(r"^  (curl .*)$", text, re.MULTILINE)
    assert command and shlex.split(command[1])[-1].startswith('{"model": "it-s"')
    assert "Bearer" not in text and "http://127.0.0.1:1/\n" in text
    assert "Bearer $KEY" in ray_local.welcome(ServeArgs(mixse_dir="x", api_key_env="KEYS"), "http://h")
