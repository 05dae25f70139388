"""What dtype a machine is fast in."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from selfmoe_ray.machines import hardware
from selfmoe_ray.machines.hardware import FastDtype, fast_dtype


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.parametrize(
    ("flags", "dtype", "device"),
    [
        ("fpu sse4_2 avx2 fma avx512f avx512_bf16", "bfloat16", "a CPU with AVX512-BF16"),
        ("fpu amx_bf16 avx2", "bfloat16", "a CPU with AMX-BF16"),
        ("fp asimd bf16 i8mm", "bfloat16", "a CPU with BF16"),
        ("fpu sse4_2 avx2 fma", "float32", "a CPU with AVX2 but without BF16 products"),
        ("fpu avx2 avx512f", "float32", "a CPU with AVX512F but without BF16 products"),
        ("", "float32", "a CPU without BF16 products"),
    ],
)
def test_a_cpu_is_fast_in_what_it_has_instructions_for(
    without_gpu: None, monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str, device: str
) -> None:
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: set(flags.split()))
    assert fast_dtype() == FastDtype(dtype, device, on_gpu=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "dtype"), [("8.0\n9.0\n", "bfloat16"), ("7.5\n", "float32"), ("9.0\n7.5\n", "float32")]
)
def test_a_gpu_is_fast_in_bfloat16_from_its_generation_on(
    monkeypatch: pytest.MonkeyPatch, told: str, dtype: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=told))
    found = fast_dtype()
    assert (found.dtype, found.on_gpu) == (dtype, True)
