"""The one training loop: for experts, router, joint training and single merged adapters. No Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel
from selfmoe_ray.training.dataset import IGNORED, TokenizedRow, collate
from selfmoe_ray.training.deepspeed_engine import load_state, make_engine, save_state
from selfmoe_ray.training.schedule import Schedule, StepRow, micro_batches, step_rows

# Times the loss of a guess among all tokens: no text is so unlikely to a model that still works.
_WORST = 4
# Times a learner's largest weight at its start: no training that works makes one so large.
_GROWTH = 1000


@dataclass(frozen=True)
class Learner:
    """What has a loss mean, a schedule and an optimizer group of its own: an expert, or the router."""

    name: str
    rows: Sequence[TokenizedRow]
    schedule: Schedule
    parameters: list[nn.Parameter]
    weight_decay: float = 0.0


@dataclass(frozen=True)
class LoopSettings:
    """How the steps are computed; nothing here changes what is learnt."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch_size: int = 8
    gradient_checkpointing: bool = False
    checkpoint_every_steps: int = 50


@dataclass(frozen=True)
class StepReport:
    """One optimizer step: mean response NLL (nats) of each active learner, tokens and pace of all workers."""

    step: int
    steps: int
    losses: dict[str, float]
    tokens: int
    tokens_per_second: float
    seconds_left: float


GateOf = Callable[[Sequence[TokenizedRow]], Gate]


def domain_gate(domains: Sequence[str]) -> GateOf:
    """Each row uses the expert of its own domain alone; `domains` in the order of the mixture's experts."""
    index = {domain: number for number, domain in enumerate(domains)}

    def gate(rows: Sequence[TokenizedRow]) -> Gate:
        return Gate.rows(F.one_hot(torch.tensor([index[row.domain] for row in rows]), len(index)))

    return gate


class TrainingLoop:
    """Trains the learners' parameters of a mixture together, on this process's share of each step.

    A step holds a batch of every learner that is not finished. The loss is the sum over learners of
    the mean NLL over the learner's response tokens of the whole step, so each learner's gradient is
    the one it would get alone, whatever the workers, micro-batches and ZeRO stage. A finished
    learner has learning rate 0: neither momentum nor weight decay moves it. A loss or a weight that is no number, a
    loss far worse than a guess's, and weights that have grown out of all measure end the run with a UserError that
    names the learner.

    The base keeps its dtype (bfloat16 or float32) and is frozen; what is trained, its gradients and
    its AdamW state are float32. Gradients are not clipped.

    Needs an initialised torch.distributed process group; every worker passes the same arguments.
    """

    def __init__(
        self, model: MixtureModel, learners: Sequence[Learner], gate_of: GateOf, pad_token_id: int,
        settings: LoopSettings,
    ):  # fmt: skip
        self.model = model
        self.learners = learners
        self.gate_of = gate_of
        self.pad_token_id = pad_token_id
        self.settings = settings
        self.steps = max((learner.schedule.steps for learner in learners), default=0)
        self.step = 0
        self.history: list[StepReport] = []
        self.rank = torch.distributed.get_rank()
        self.workers = torch.distributed.get_world_size()
        self._lengths = [[len(row.input_ids) for row in learner.rows] for learner in learners]
        self._targets = [[row.response_tokens for row in learner.rows] for learner in learners]
        model.train_only([parameter for learner in learners for parameter in learner.parameters])
        if settings.gradient_checkpointing:
            _checkpoint_layers(model)
        groups = [{"params": each.parameters, "lr": 0.0, "weight_decay": each.weight_decay} for each in learners]
        self.engine = make_engine(model, groups, settings.zero_stage, settings.micro_batch_size)
        self._start_sizes = self._sizes()

    def run(
        self, on_step: Callable[[StepReport], None], on_checkpoint: Callable[[TrainingLoop], None]
    ) -> list[StepReport]:
        """Take all steps that are left; `on_checkpoint` runs on every worker, also after the last step."""
        started, done_tokens, total_tokens = time.monotonic(), 0, self._tokens_left()
        while self.step < self.steps:
            losses, tokens = self._take_step()
            done_tokens += tokens
            pace = done_tokens / (time.monotonic() - started)
            self.step += 1
            report = StepReport(self.step, self.steps, losses, tokens, pace, (total_tokens - done_tokens) / pace)
            self.history.append(report)
            on_step(report)
            if self.step == self.steps or self.step % self.settings.checkpoint_every_steps == 0:
                self.check_weights()
                on_checkpoint(self)
        return self.history

    def save(self, folder: Path) -> None:
        """Write what is trained, the optimizer state and the history; every worker calls this."""
        save_state(self.engine, folder, {"step": self.step, "history": [vars(report) for report in self.history]})

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote with the same learners, workers and ZeRO stage.

        Raises UserError where that is not all there.
        """
        state = load_state(self.engine, folder)
        self.step = state["step"]
        self.history = [StepReport(**report) for report in state["history"]]

    def _take_step(self) -> tuple[dict[str, float], int]:
        rows = step_rows(self.step, [learner.schedule for learner in self.learners], self._lengths, self._targets)
        totals = torch.zeros(len(self.learners), device=self.engine.device)
        for micro_batch in micro_batches(rows, self.workers, self.settings.micro_batch_size)[self.rank]:
            totals += self._accumulate(micro_batch)
        for group, learner in zip(self.engine.optimizer.param_groups, self.learners, strict=True):
            rates = learner.schedule.learning_rates
            group["lr"] = rates[self.step] if self.step < learner.schedule.steps else 0.0
        torch.distributed.all_reduce(totals)
        active = {self.learners[row.learner].name for row in rows}
        losses = {
            learner.name: loss
            for learner, loss in zip(self.learners, totals.tolist(), strict=True)
            if learner.name in active
        }
        self._refuse_divergence(losses)
        is_finite = self.settings.zero_stage > 0 or self._gradients_are_finite()
        if is_finite:
            self.engine.step()
        # With ZeRO DeepSpeed leaves such a step out by itself, with a line in the log.
        if not is_finite or not self.engine.was_step_applied():
            raise self._diverged(self._largest(), self.step + 1, "a gradient is no number")
        return losses, sum(row.length for row in rows)

    def _refuse_divergence(self, losses: dict[str, float]) -> None:
        """Raises UserError before a loss that says nothing any more moves a weight."""
        most = _WORST * math.log(self.model.base.config.get_text_config().vocab_size)
        for name, loss in losses.items():
            # Not a number compares false with everything.
            if not loss <= most:
                # A weight that overflows makes the losses of all rows in its batch no numbers.
                learner = name if math.isfinite(loss) else self._largest()
                raise self._diverged(learner, self.step + 1, f"its loss is {loss:.4g} nats a token")

    def _diverged(self, learner: str, step: int, what: str) -> UserError:
        rates = next(each for each in self.learners if each.name == learner).schedule.learning_rates
        return UserError(
            f"training of {learner!r} diverged at step {step} of {self.steps}: {what}.\n"
            f"  lower its learning rate ({rates[min(step, len(rates)) - 1]:g} in this step) or look at its rows; what "
            "was written before is kept"
        )

    def _gradients_are_finite(self) -> bool:
        gradients = [each.grad for learner in self.learners for each in learner.parameters if each.grad is not None]
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all().float()
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        return bool(finite)

    def _sizes(self) -> Tensor:
        """Each learner's largest weight [learners], infinite where one is no number."""
        sizes = torch.stack([
            torch.stack([getattr(each, "ds_tensor", each).detach().abs().max() for each in learner.parameters]).max()
            for learner in self.learners
        ]).float().nan_to_num(math.inf, math.inf)  # fmt: skip
        torch.distributed.all_reduce(sizes, torch.distributed.ReduceOp.MAX)
        return sizes

    def _largest(self) -> str:
        """The learner with the largest weight: gradients overflow where weights have grown."""
        return self.learners[int(self._sizes().argmax())].name

    def check_weights(self) -> None:
        """Raises UserError where what is trained is no longer fit to go on from, before it is written anywhere.

        Every worker calls it.
        """
        sizes = zip(self.learners, self._start_sizes.tolist(), self._sizes().tolist(), strict=True)
        for learner, start, size in sizes:
            if size > _GROWTH * start:
                grown = f"its largest weight has grown from {start:.3g} to {size:.3g}"
                what = grown if math.isfinite(size) else "its weights are no numbers"
                raise self._diverged(learner.name, max(1, self.step), what)

    def _accumulate(self, micro_batch: Sequence[StepRow]) -> Tensor:
        """Add a micro-batch's gradients; returns its part of each learner's loss [learners]."""
        rows = [self.learners[row.learner].rows[row.row] for row in micro_batch]
        device = self.engine.device
        batch = {name: tensor.to(device) for name, tensor in collate(rows, self.pad_token_id).items()}
        nll = response_nll(self.engine, self.model, self.gate_of(rows), batch)
        losses = nll * torch.tensor([row.weight for row in micro_batch], device=device)
        # DeepSpeed averages gradients over workers; the loss is a sum over them.
        self.engine.backward(losses.sum() * self.workers)
        owners = torch.tensor([row.learner for row in micro_batch], device=device)
        return torch.zeros(len(self.learners), device=device).index_add_(0, owners, losses.detach())

    def _tokens_left(self) -> int:
        return sum(
            lengths[row]
            for learner, lengths in zip(self.learners, self._lengths, strict=True)
            for batch in learner.schedule.batches[self.step :]
            for row in batch
        )


def _checkpoint_layers(model: MixtureModel) -> None:
    """Have activations of decoder layers computed again in the backward pass.

    Transformers does so for layers in training mode only, so they are in it until they compute: a base with dropout
    computes the same with and without.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.base.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.base.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True
            layer.register_forward_pre_hook(_leave_training_mode)
            # A second pass ends by an exception as soon as it has what the backward pass needs.
            layer.register_forward_hook(_enter_training_mode, always_call=True)


def _leave_training_mode(layer: nn.Module, _: Any) -> None:
    layer.training = False


def _enter_training_mode(layer: nn.Module, _: Any, __: Any) -> None:
    layer.training = True


def response_nll(forward: Callable[..., Any], model: MixtureModel, gate: Gate, batch: dict[str, Tensor]) -> Tensor:
    """Each row's NLL summed over its response tokens, [batch], in nats, float32.

    forward: the model, or the engine that wraps it. batch: input_ids and labels, each [batch, seq],
    padded on the right. Only positions that predict a response token reach the vocabulary projection, which
    is a fifth of a small model's work and most of its activations.
    """
    labels = batch["labels"][:, 1:]
    predicts = labels != IGNORED

    def keep_predicting(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][:, :-1][predicts],)

    hook = model.base.get_output_embeddings().register_forward_pre_hook(keep_predicting)
    try:
        # Padding is on the right, where no causal attention looks: without a mask attention is faster.
        output = forward(gate=gate, input_ids=batch["input_ids"], use_cache=False)
    finally:
        hook.remove()
    nll = F.cross_entropy(output.logits.float(), labels[predicts], reduction="none")
    return torch.zeros(len(labels), device=nll.device).index_add(0, predicts.nonzero()[:, 0], nll)
