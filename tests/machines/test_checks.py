"""What the doctor says of versions, folders and nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from selfmoe_ray.commands.doctor import line, main
from selfmoe_ray.engine.vllm_plugin.compatibility import TESTED_VLLM
from selfmoe_ray.machines import checks
from selfmoe_ray.machines.checks import (
    Finding,
    Node,
    check_auth,
    check_missing_gpu,
    check_nodes,
    check_packages,
    check_plugin,
    check_python,
    check_shared_memory,
    check_vllm,
    mark_of_driver,
    write_probe,
)

DRIVER = Node("head", "3.11.7", {"ray": "2.60.0", "torch": "2.13.0"}, has_plugin=True, storage="")


def test_an_old_python_is_refused() -> None:
    assert check_python((3, 11, 0)).status == "ok"
    assert check_python((3, 10, 9)).status == "failed"


def test_each_package_outside_its_range_is_named_with_the_range() -> None:
    installed = {"ray": "2.60.1+local", "torch": "2.14.0", "windows-only": None}
    requirements = ["ray[data]<2.61,>=2.60", "torch<2.14", "peft", 'extra-one; extra == "cuda"', "ray"]
    findings = list(check_packages(requirements, installed.get))
    assert [(each.status, each.found) for each in findings] == [
        ("failed", "torch 2.14.0"),
        ("failed", "peft is not installed"),
    ]
    assert "torch<2.14" in findings[0].remedy
    assert [each.status for each in check_packages(requirements[:1], installed.get)] == ["ok"]


@pytest.mark.parametrize(
    ("vllm", "torch", "wanted", "status"),
    [
        ("0.32.0", "2.13.0+cpu", "2.13.0+cpu", "ok"),
        ("0.32.1", "2.13.0", "2.13.0+cpu", "ok"),
        ("0.32.0", "2.14.0", "2.13.0", "failed"),
        ("0.31.0", "2.13.0", "2.13.0", "ok"),
        ("0.33.0", "2.14.0", "2.14.0", "warning"),
        ("0.3.0", "2.13.0", "2.13.0", "warning"),
        (None, "2.13.0", None, "failed"),
    ],
)
def test_vllm_and_torch_have_to_fit(vllm: str | None, torch: str, wanted: str | None, status: str) -> None:
    assert check_vllm(vllm, torch, wanted, ["0.32", "0.31"]).status == status


def test_what_is_installed_here_fits() -> None:
    assert {
        each.status for each in checks.diagnose_machine("runs", list(TESTED_VLLM)) if each.check in ("python", "vllm")
    } == {"ok"}
    assert check_plugin(checks.has_plugin()).status == "ok"


@pytest.mark.parametrize(
    ("cuda", "has_driver", "status", "remedy"),
    [
        (None, False, "ok", ""),
        (None, True, "failed", "install the CUDA set"),
        ("13.0", False, "warning", "make setup DEVICE=cpu"),
        ("13.0", True, "failed", "built for CUDA 13.0, cannot use it"),
    ],
)
def test_a_torch_and_a_machine_without_each_other_are_told(
    cuda: str | None, has_driver: bool, status: str, remedy: str
) -> None:
    found = check_missing_gpu(cuda, has_driver)
    assert found.status == status and remedy in found.remedy and "CPU cores" in found.found


def test_shared_memory_below_what_ray_asks_for_is_a_warning(tmp_path: Path) -> None:
    import psutil

    found = check_shared_memory("/dev/shm")
    is_small = psutil.disk_usage("/dev/shm").total < 0.3 * psutil.virtual_memory().total
    assert found.status == ("warning" if is_small else "ok")
    assert check_shared_memory(str(tmp_path / "none")).status == "failed"


def test_a_root_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    assert write_probe(str(tmp_path)) == "" and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    assert "file" in write_probe(str(tmp_path / "file" / "runs"))
    assert "nowhere://" in write_probe("nowhere://bucket")


def test_a_folder_of_another_machine_is_not_the_drivers(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    with mark_of_driver(str(shared)) as mark:
        assert write_probe(str(shared), mark) == ""
        assert write_probe(str(own), mark).startswith("not the folder that the driver writes to")
    assert not list(shared.iterdir()) and not list(own.iterdir())


def test_auth_is_a_warning_without_the_token_mode() -> None:
    assert check_auth({"RAY_AUTH_MODE": "token"}).status == "ok"
    assert check_auth({}).status == "warning"


def test_a_node_that_differs_from_the_driver_is_named() -> None:
    other = replace(DRIVER, host="gpu1", python="3.12.1", packages={"ray": "2.60.0", "torch": "2.12.0"})
    bare = replace(DRIVER, host="gpu2", has_plugin=False, storage="read-only file system")
    findings = list(check_nodes(DRIVER, [DRIVER, other, bare], "/shared"))
    assert findings[0] == Finding("cluster", "ok", "3 nodes answered")
    assert [(each.check, each.found) for each in findings[1:]] == [
        ("node gpu1", "Python 3.12.1, not 3.11.7; torch 2.12.0, not 2.13.0"),
        ("node gpu2", "vLLM's plugin is missing there"),
        ("node gpu2", "/shared: read-only file system"),
    ]


def test_the_command_prints_json_and_fails_where_a_check_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "file").write_text("")
    status = main(["--json", "--root", str(tmp_path / "file" / "runs")])
    findings = {each["check"]: each for each in json.loads(capsys.readouterr().out)}
    assert status == 1 and findings["storage"]["status"] == "failed" and findings["plugin"]["status"] == "ok"


def test_a_remedy_has_a_line_of_its_own() -> None:
    assert line(Finding("auth", "warning", "not set", "set it")).splitlines()[1].strip() == "-> set it"
