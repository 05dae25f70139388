"""The router's start: softmax regression of theta to the domain labels that the rows carry anyway."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfmoe_ray.base_model.weights import check_numbers
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel
from selfmoe_ray.mixture.router import Router
from selfmoe_ray.training.dataset import TokenizedRow, collate

HELD_OUT_SHARE = 0.1
FIT_STEPS = 300
FIT_BATCH_TOKENS = 512
FIT_LEARNING_RATE = 0.03


@dataclass(frozen=True)
class FitReport:
    """Tokens used, and for each layer the share of tokens whose likeliest expert is their domain's."""

    train_tokens: int
    held_out_tokens: int
    train_accuracy: list[float]
    held_out_accuracy: list[float]


@dataclass(frozen=True)
class Features:
    """What the router reads of the plain base, [layers, tokens, hidden] in bfloat16, and labels [tokens]."""

    hidden: Tensor
    labels: Tensor


def fit_to_labels(
    model: MixtureModel, rows: Sequence[TokenizedRow], tokens: int, pad_token_id: int, seed: int
) -> FitReport:
    """Set theta so that softmax(mean_{j <= l} theta_j x_j) tells each token's domain at every layer l.

    x_j are hidden states of the base without experts on about `tokens` prompt and response tokens,
    drawn evenly over domains; a tenth of the rows is kept back for the reported accuracy. The loss
    is the mean cross-entropy over tokens and layers; tau is left to the router's use.

    Memory: 2 bytes x layers x tokens x hidden (0.6 GB for 16,384 tokens of 30 layers of 576; 2.8 GB
    for 28 layers of 3,072). Raises UserError where the fit does not end in numbers.
    """
    held_out, train = _draw_rows(rows, model.spec.experts, tokens, seed)
    train_features = collect_features(model, train, pad_token_id)
    scale = _scale(train_features.hidden, model.router)
    _regress(model.router, train_features, scale, seed)
    check_numbers(model.router.named_parameters(), "the router's fit to the domain labels")
    held_out_features = collect_features(model, held_out, pad_token_id) if held_out else None
    return FitReport(
        train_tokens=len(train_features.labels),
        held_out_tokens=len(held_out_features.labels) if held_out_features else 0,
        train_accuracy=token_accuracy(model.router, train_features),
        held_out_accuracy=token_accuracy(model.router, held_out_features) if held_out_features else [],
    )


@torch.inference_mode()
def collect_features(model: MixtureModel, rows: Sequence[TokenizedRow], pad_token_id: int) -> Features:
    """What each layer's router input is on the tokens of these rows, with no expert at work."""
    device = next(model.router.parameters()).device
    expert = {name: index for index, name in enumerate(model.spec.experts)}
    hidden: list[Tensor] = []
    labels: list[Tensor] = []
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    for start in range(0, len(ordered), 8):
        group = ordered[start : start + 8]
        batch = {name: tensor.to(device) for name, tensor in collate(group, pad_token_id).items()}
        present = batch["attention_mask"].bool()
        with model.record_router_inputs() as recorded:
            model(gate=Gate.off(), input_ids=batch["input_ids"], use_cache=False, logits_to_keep=1)
        hidden.append(torch.stack([layer[present].to(torch.bfloat16) for layer in recorded[0]]))
        own = torch.tensor([expert[row.domain] for row in group], device=device)
        labels.append(own[:, None].expand_as(present)[present])
    return Features(torch.cat(hidden, dim=1), torch.cat(labels))


@torch.inference_mode()
def token_accuracy(router: Router, features: Features) -> list[float]:
    """For each layer, the share of tokens whose largest logit is their domain's."""
    summed: Tensor | None = None
    shares = []
    for layer in range(router.num_layers):
        summed = router.accumulated(layer, features.hidden[layer], summed)
        shares.append((summed.argmax(-1) == features.labels).float().mean().item())
    return shares


def _draw_rows(
    rows: Sequence[TokenizedRow], domains: Sequence[str], tokens: int, seed: int
) -> tuple[list[TokenizedRow], list[TokenizedRow]]:
    """(held out, train): whole rows of each domain up to its even share of the tokens."""
    held_out: list[TokenizedRow] = []
    train: list[TokenizedRow] = []
    for domain in domains:
        own = sorted((row for row in rows if row.domain == domain), key=lambda row: row.id)
        random.Random(f"{seed}/{domain}/fit").shuffle(own)
        drawn: list[TokenizedRow] = []
        budget = tokens / len(domains)
        while own and budget > 0:
            drawn.append(own.pop())
            budget -= len(drawn[-1].input_ids)
        kept_back = round(HELD_OUT_SHARE * len(drawn))
        held_out += drawn[:kept_back]
        train += drawn[kept_back:]
    return held_out, train


def _scale(hidden: Tensor, router: Router) -> Tensor:
    """Root mean square of each feature, [layers, hidden]; one for all layers where theta is shared."""
    squares = torch.stack([layer.float().square().mean(0) for layer in hidden])
    if router.shape.scope == "shared":
        squares = squares.mean(0, keepdim=True).expand_as(squares)
    return squares.sqrt().clamp_min(1e-6)


def _regress(router: Router, features: Features, scale: Tensor, seed: int) -> None:
    """Minibatch Adam from zero on features divided by their scale, which theta then takes over."""
    parameters = list(router.parameters())
    with torch.no_grad():
        for theta in parameters:
            theta.zero_()
            theta.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=FIT_LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, FIT_STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(FIT_STEPS):
        drawn = torch.randint(len(features.labels), (FIT_BATCH_TOKENS,), generator=generator)
        drawn = drawn.to(features.labels.device)
        optimizer.zero_grad()
        _loss(router, features.hidden[:, drawn] / scale[:, None], features.labels[drawn]).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        for theta, own_scale in zip(parameters, scale, strict=False):
            theta.div_(own_scale)


def _loss(router: Router, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at tau 1, the mean over tokens and layers."""
    summed: Tensor | None = None
    losses = []
    for layer in range(router.num_layers):
        summed = router.accumulated(layer, hidden[layer], summed)
        depth = layer + 1 if router.shape.accumulate else 1
        losses.append(F.cross_entropy(summed / depth, labels))
    return torch.stack(losses).mean()
