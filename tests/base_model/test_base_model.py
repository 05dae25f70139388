"""Every kind of `base_model` value, the cache of converted models, and what a wrong value says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.base_model import check_hash, load_model, load_tokenizer, resolve
from selfmoe_ray.errors import UserError
from tests.faulty_bases import in_hub_cache
from tests.tiny_gguf import write_tiny_gguf

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_gguf(tmp_path: Path, cache: Path, tiny_model_dir: Callable[..., Path]) -> Path:
    return write_tiny_gguf(tiny_model_dir("llama"), tmp_path / "tiny.gguf")


def complete(path: str, text: str, tokens: int) -> str:
    tokenizer = load_tokenizer(path)
    model = load_model(path, "float32")
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def run_module(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfmoe_ray.base_model", *arguments]
    merged = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=merged, timeout=300)


def test_embedded_completes_sensibly_and_keeps_its_special_tokens() -> None:
    base = resolve("embedded")
    assert "Paris" in complete(base.path, "The capital of France is", 4)
    tokenizer = load_tokenizer(base.path)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer("Hello")["input_ids"] == tokenizer("Hello", add_special_tokens=False)["input_ids"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
    generation = json.loads((Path(base.path) / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id


@pytest.mark.slow
def test_embedded_gemma_gets_its_bos_and_completes_sensibly() -> None:
    base = resolve("embedded:gemma3-270m")
    tokenizer = load_tokenizer(base.path)
    assert tokenizer("Hello")["input_ids"][0] == tokenizer.bos_token_id
    assert (tokenizer.bos_token, tokenizer.pad_token) == ("<bos>", "<pad>")
    assert "100 degrees" in complete(base.path, "Water boils at a temperature of", 8)


@pytest.mark.parametrize("add_bos", [True, False])
def test_gguf_converts_to_the_same_model_and_tokenizer(
    tmp_path: Path, cache: Path, tiny_model_dir: Callable[..., Path], add_bos: bool
) -> None:
    import torch

    origin = tiny_model_dir("llama")
    file = write_tiny_gguf(origin, tmp_path / "tiny.gguf", add_bos, end_of_turn=5)
    base = resolve(str(file))
    before, after = load_tokenizer(str(origin)), load_tokenizer(base.path)
    text = "What is the capital of France?"
    plain = before(text, add_special_tokens=False)["input_ids"]
    assert after(text)["input_ids"] == ([after.bos_token_id] if add_bos else []) + plain
    assert after.chat_template == "{{ messages[0]['content'] }}"
    assert after.pad_token == "<pad>"
    reference, model = load_model(str(origin), "float32"), load_model(base.path, "float32")
    for weight in reference.parameters():
        weight.data = weight.data.bfloat16().float()
    ids = torch.tensor([plain])
    torch.testing.assert_close(model(ids).logits, reference(ids).logits)
    assert model.generation_config.eos_token_id == [after.eos_token_id, 5]


def test_conversion_happens_once(tiny_gguf: Path, cache: Path) -> None:
    first = resolve(str(tiny_gguf))
    weights = Path(first.path) / "model.safetensors"
    before = weights.stat()
    moved = shutil.copy(tiny_gguf, tiny_gguf.with_name("renamed.gguf"))
    second = resolve(str(tiny_gguf))
    assert (second, weights.stat().st_ino, weights.stat().st_mtime_ns) == (
        first,
        before.st_ino,
        before.st_mtime_ns,
    )
    assert resolve(str(moved)).content_hash == first.content_hash


def test_two_processes_convert_once(tiny_gguf: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "selfmoe_ray.base_model", str(tiny_gguf)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert results[0][0] == results[1][0]
    assert sum("Converting" in stderr for _, stderr in results) == 1


@pytest.mark.parametrize("damage", ["truncate weights", "edit tokenizer", "lose config"])
def test_a_damaged_cache_is_made_anew(tiny_gguf: Path, cache: Path, damage: str) -> None:
    base = resolve(str(tiny_gguf))
    folder = Path(base.path)
    tokenizer = (folder / "tokenizer.json").read_bytes()
    if damage == "truncate weights":
        os.truncate(folder / "model.safetensors", 1000)
    elif damage == "edit tokenizer":
        (folder / "tokenizer.json").write_bytes(tokenizer.replace(b"</s>", b"</t>"))
    else:
        (folder / "config.json").unlink()
    assert resolve(str(tiny_gguf)) == base
    assert (folder / "tokenizer.json").read_bytes() == tokenizer


def test_an_interrupted_conversion_leaves_nothing_behind(tiny_gguf: Path, cache: Path) -> None:
    base = resolve(str(tiny_gguf))
    os.rename(base.path, f"{base.path}.partial")
    (Path(f"{base.path}.partial") / "config.json").unlink()
    assert resolve(str(tiny_gguf)) == base
    assert not Path(f"{base.path}.partial").exists()


def test_content_hash_depends_on_the_model_alone(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    origin = tiny_model_dir("llama")
    base = resolve(str(origin))
    AutoModelForCausalLM.from_pretrained(origin).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    assert resolve(str(tmp_path / "sharded")).content_hash == base.content_hash
    other = resolve(str(tiny_model_dir("llama", seed=1)))
    assert other.content_hash != base.content_hash
    check_hash("org/model", base.content_hash, base)
    check_hash("org/model", "", base)
    with pytest.raises(UserError, match=r"made for 'org/model' with hash"):
        check_hash("org/model", other.content_hash, base)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("embedded:llama", "embedded:gemma3-270m"),
        ("nowhere/model.gguf", "no file /"),
        ("some-org/some-model", "offline: HF_HUB_OFFLINE is set"),
        ("./no/such/folder", "a directory: /"),
    ],
)
def test_a_wrong_value_says_what_was_looked_for(value: str, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve(value)
    assert value in str(raised.value) and expected in str(raised.value)


def test_a_broken_checkpoint_says_what_is_wrong(
    tmp_path: Path, cache: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        resolve(str(folder))
    shutil.copytree(tiny_model_dir("llama"), folder, dirs_exist_ok=True)
    os.truncate(folder / "model.safetensors", 50_000)
    with pytest.raises(UserError, match="no complete safetensors file"):
        resolve(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        resolve(str(folder))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(UserError, match="could not be converted"):
        resolve(str(tmp_path / "broken.gguf"))


def test_a_hub_id_comes_from_the_hub_cache(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    repository = tmp_path / "models--some-org--some-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_model_dir("llama"), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    result = run_module("some-org/some-model", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert (result.returncode, result.stdout) == (0, f"{snapshot}\n")


def test_the_module_prints_the_directory_alone(tiny_gguf: Path, cache: Path) -> None:
    result = run_module(str(tiny_gguf))
    assert result.returncode == 0
    assert result.stdout == f"{resolve(str(tiny_gguf)).path}\n"
    wrong = run_module("embedded:none")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: base_model:") and "Traceback" not in wrong.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_one_bos_and_a_pad_that_is_not_eos(family: str, tiny_model_dir: Callable[..., Path]) -> None:
    path = str(tiny_model_dir(family))
    tokenizer = load_tokenizer(path)
    ids = tokenizer("What is the capital of France?")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.pad_token not in (None, tokenizer.eos_token)
    model = load_model(path, "bfloat16")
    assert not model.training and {str(value.dtype) for value in model.parameters()} == {"torch.bfloat16"}
    assert model.config._attn_implementation == ("eager" if family == "gemma2" else "sdpa")


def test_gemma_gets_bos_where_its_tokenizer_adds_none(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    shutil.copytree(tiny_model_dir("gemma3"), tmp_path, dirs_exist_ok=True)
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.add_bos_token = False
    tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("Hello")["input_ids"][0] == tokenizer.bos_token_id


def test_code_of_a_checkpoint_runs_only_when_asked_for(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    shutil.copytree(tiny_model_dir("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(UserError, match="trust_remote_code"):
        load_model(str(tmp_path), "float32")


def test_light_modules_load_without_the_heavy_stack() -> None:
    code = (
        "import sys, selfmoe_ray.config, selfmoe_ray.run.run_dir, selfmoe_ray.base_model\n"
        "print({'torch', 'ray', 'vllm', 'transformers', 'deepspeed', 'pyarrow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def _save(origin: Path) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(origin, folder, dirs_exist_ok=True)


@pytest.fixture
def moved(tmp_path: Path, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two commits of some-org/some-model in the hub's cache, of which the second is the newest."""
    old, new = "a" * 40, "b" * 40
    writers = {old: _save(tiny_model_dir("llama")), new: _save(tiny_model_dir("llama", seed=1))}
    in_hub_cache(tmp_path / "hub", "some-org/some-model", writers, main=new)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return old, new


def test_a_revision_of_a_hub_id_is_its_own(moved: tuple[str, str], tiny_model_dir: Callable[..., Path]) -> None:
    old, new = moved
    pinned, newest = resolve(f"some-org/some-model@{old}"), resolve("some-org/some-model")
    assert (pinned.revision, newest.revision) == (old, new)
    assert pinned.content_hash == resolve(str(tiny_model_dir("llama"))).content_hash != newest.content_hash
    assert resolve(pinned.path).revision == ""


def test_a_repository_that_has_moved_says_how_to_get_the_old_commit(moved: tuple[str, str]) -> None:
    old, new = moved
    made_for, newest = resolve(f"some-org/some-model@{old}"), resolve("some-org/some-model")
    with pytest.raises(UserError, match=f"moved from commit {old} to {new}: give some-org/some-model@{old}"):
        check_hash("some-org/some-model", made_for.content_hash, newest, old)
    with pytest.raises(UserError, match=r"may have moved, to commit .*: give some-org/some-model@COMMIT"):
        check_hash("some-org/some-model", made_for.content_hash, newest)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], str]]:
    """`hub(code, status)`: have a hub of this machine refuse everything so; gives its address."""
    from huggingface_hub import constants

    refusal: dict[str, Any] = {}

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(refusal["status"])
            self.send_header("X-Error-Code", refusal["code"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Tests' output is not the server's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)

    def refuse(code: str, status: int) -> str:
        refusal.update(code=code, status=status)
        return address

    yield refuse
    server.shutdown()
    server.server_close()


def test_a_gated_repository_says_how_to_be_let_in(hub: Callable[[str, int], str]) -> None:
    address = hub("GatedRepo", 403)
    with pytest.raises(UserError, match=f"accept them at {address}/org/name, then set HF_TOKEN"):
        resolve("org/name@main")


def test_a_revision_and_a_repository_that_are_not_there_are_told_apart(hub: Callable[[str, int], str]) -> None:
    hub("RevisionNotFound", 404)
    with pytest.raises(UserError, match="'org/name' has no branch, tag or commit 'v9'"):
        resolve("org/name@v9")
    hub("RepoNotFound", 404)
    with pytest.raises(UserError, match=r"on the hub \(one that is private shows itself to HF_TOKEN alone\)"):
        resolve("org/name")


def test_pickled_weights_become_safetensors_by_the_command_that_is_named(
    tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    import torch
    from safetensors.torch import load_file

    origin = tiny_model_dir("llama")
    folder = Path(shutil.copytree(origin, tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin alone becomes such a one") as raised:
        resolve(str(folder))
    command = str(raised.value).splitlines()[-1].strip()
    command = (
        command.replace("FROM", str(folder)).replace("TO", str(tmp_path / "made")).replace("python", sys.executable, 1)
    )
    subprocess.run(command, shell=True, check=True, capture_output=True, timeout=300)
    made, before = resolve(str(tmp_path / "made")), resolve(str(origin))
    reference, model = load_model(before.path, "float32"), load_model(made.path, "float32")
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), model.parameters(), strict=True))
