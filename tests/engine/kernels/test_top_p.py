"""Top-p filtering against vLLM's, which sorts."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selfmoe_ray.engine.kernels import top_p
from selfmoe_ray.engine.kernels.top_p import keep_top_p

Sampler = tuple[Callable[..., Tensor], Callable[..., Tensor]]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def sorted_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """What stays, in float64: a token goes when it and all below it have at most 1 - p."""
    values, order = logits.double().sort(dim=-1)
    goes = values.softmax(-1).cumsum(-1) <= 1 - p.double()[:, None]
    goes[:, -1] = False
    return torch.empty_like(goes).scatter_(1, order, ~goes)


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0], ids=["flat", "wide", "usual", "peaked"])
@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.98, 0.9999])
def test_the_tokens_that_stay_are_those_of_a_sort(rows: int, spread: float, p: float) -> None:
    torch.manual_seed(rows)
    logits = torch.randn(rows, 3001) * spread + 5
    share = torch.full((rows,), p)
    kept = keep_top_p(logits.clone(), share)
    differ = sorted_top_p(logits, share) != (kept > -torch.inf)
    # Where the sum meets 1 - p to the last digit, rounding decides on a token.
    assert differ.sum(-1).max() <= 1
    torch.testing.assert_close(kept[kept > -torch.inf], logits[kept > -torch.inf], rtol=0, atol=0)


def test_each_row_has_a_share_of_its_own_and_one_that_asks_for_all_is_left_alone() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 9.0]] * 3)
    kept = keep_top_p(logits.clone(), torch.tensor([1.0, 0.5, 0.999])) > -torch.inf
    assert kept.tolist() == [[True] * 4, [False] * 3 + [True], [False, False, True, True]]


def test_of_equal_tokens_so_many_stay_as_the_share_needs() -> None:
    kept = keep_top_p(torch.zeros(1, 100), torch.tensor([0.495]))
    assert (kept > -torch.inf).sum() == 50


def test_tokens_that_are_ruled_out_stay_out() -> None:
    logits = torch.full((2, 50), -torch.inf)
    logits[0, 7], logits[0, 8], logits[1, 3] = 1.0, 1.5, -2.0
    kept = keep_top_p(logits.clone(), torch.tensor([0.99, 0.1]))
    torch.testing.assert_close(kept, logits, rtol=0, atol=0)


def test_rows_of_a_wider_tensor_are_read_right() -> None:
    wide = torch.randn(4, 200)
    p = torch.full((4,), 0.7)
    kept = keep_top_p(wide[:, :100], p)
    assert torch.equal(kept > -torch.inf, sorted_top_p(wide[:, :100], p))


class TestInVllm:
    @pytest.fixture
    def sampler(self, monkeypatch: pytest.MonkeyPatch) -> Sampler:
        module = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
        from vllm.platforms import current_platform

        if not current_platform.is_cpu() or module.HAS_TRITON:
            pytest.skip("vLLM filters on another device here")
        original = module.apply_top_k_top_p_pytorch
        monkeypatch.setattr(module, "apply_top_k_top_p_pytorch", original)
        top_p.install()
        top_p.install()
        return original, module.apply_top_k_top_p

    @pytest.mark.parametrize("k", [None, 3, 40])
    def test_it_takes_the_place_of_the_sort(self, sampler: Sampler, k: int | None) -> None:
        original, apply = sampler
        torch.manual_seed(1)
        logits, p = torch.randn(5, 400) * 3, torch.tensor([0.2, 0.5, 0.9, 0.98, 1.0])
        count = None if k is None else torch.full((5,), k)
        wanted = original(logits.clone(), None if count is None else count.clone(), p)
        torch.testing.assert_close(apply(logits.clone(), count, p), wanted, rtol=0, atol=0)

    def test_without_a_compiler_vllm_sorts(self, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
        original, apply = sampler
        monkeypatch.setattr(top_p, "load_library", lambda: None)
        logits, p = torch.randn(2, 50), torch.tensor([0.5, 0.9])
        torch.testing.assert_close(apply(logits.clone(), None, p), original(logits.clone(), None, p), rtol=0, atol=0)

    @pytest.mark.parametrize("asked", [True, False])
    def test_the_plugin_installs_it_for_engines_on_a_cpu_that_ask(
        self, asked: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
        from vllm.platforms import current_platform

        from selfmoe_ray.engine.plan import FAST_TOP_P
        from selfmoe_ray.engine.vllm_plugin import register

        original = module.apply_top_k_top_p_pytorch
        monkeypatch.setattr(module, "apply_top_k_top_p_pytorch", original)
        monkeypatch.delenv(FAST_TOP_P, raising=False)
        if asked:
            monkeypatch.setenv(FAST_TOP_P, "1")
        register()
        assert (module.apply_top_k_top_p_pytorch is not original) == (asked and current_platform.is_cpu())
