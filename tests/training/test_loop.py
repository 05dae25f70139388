import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.checkpoint import save_expert, save_router
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.training.dataset import collate
from selfmoe_ray.training.loop import LoopSettings, response_nll
from tests.training import train_tiny as tiny

pytestmark = pytest.mark.usefixtures("process_group")
SETTINGS = LoopSettings(micro_batch_size=3)


def ignore(_):
    pass


def assert_same(found, expected, tolerance=2e-4):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def fused(tiny_model_dir):
    """Start, trained weights and history of all experts trained together by one worker with ZeRO-0."""
    model = tiny.make_mixture(tiny_model_dir(), list(tiny.ROWS))
    start = tiny.weights(model)
    history = tiny.expert_loop(model, SETTINGS).run(ignore, ignore)
    return start, tiny.weights(model), history


def test_response_nll_is_the_reference_cross_entropy(tiny_model_dir):
    model = tiny.make_mixture(tiny_model_dir(), ["ant"])
    rows = tiny.make_rows("ant")[:3]
    batch = collate(rows, tiny.PAD)
    nll = response_nll(model, model, Gate.off(), batch)
    logits = model(gate=Gate.off(), input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    reference = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none").sum(1)
    torch.testing.assert_close(nll, reference)


def test_every_expert_learns_and_only_the_experts(fused):
    start, trained, history = fused
    for name in start:
        assert torch.equal(start[name], trained[name]) == name.startswith("router"), name
    assert history[-1].losses["ant"] < history[0].losses["ant"]


def test_steps_and_losses_are_those_of_each_expert_alone(fused):
    _, _, history = fused
    steps = {
        domain: math.ceil(rows / tiny.OPTIMIZER.batch_size) * int(tiny.OPTIMIZER.epochs)
        for domain, rows in tiny.ROWS.items()
    }
    assert len(history) == max(steps.values())
    for domain, count in steps.items():
        assert [domain in report.losses for report in history] == [step < count for step in range(len(history))]


@pytest.mark.parametrize("domain", ["ant", "bee", "cat"])
def test_an_expert_trained_alone_is_the_same(fused, tiny_model_dir, domain):
    alone = tiny.make_mixture(tiny_model_dir(), [domain])
    history = tiny.expert_loop(alone, SETTINGS).run(ignore, ignore)
    expected = {name: value for name, value in fused[1].items() if name.startswith(domain)}
    assert_same({name: value for name, value in tiny.weights(alone).items() if name.startswith(domain)}, expected)
    together = [report.losses[domain] for report in fused[2] if domain in report.losses]
    assert [report.losses[domain] for report in history] == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, micro_batch_size=12),
        replace(SETTINGS, gradient_checkpointing=True),
        replace(SETTINGS, zero_stage=2),
        replace(SETTINGS, zero_stage=3),
    ],
    ids=["micro_batch_size", "gradient_checkpointing", "zero_2", "zero_3"],
)
def test_settings_do_not_change_what_is_learnt(fused, tiny_model_dir, settings):
    model = tiny.make_mixture(tiny_model_dir(), list(tiny.ROWS))
    tiny.expert_loop(model, settings).run(ignore, ignore)
    assert_same(tiny.weights(model, settings.zero_stage), fused[1])


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_resumed_run_ends_as_an_undisturbed_one(tiny_model_dir, tmp_path, zero_stage):
    settings = replace(SETTINGS, zero_stage=zero_stage, checkpoint_every_steps=2)
    undisturbed = tiny.make_mixture(tiny_model_dir(), list(tiny.ROWS))

    def save(loop):
        loop.save(tmp_path / f"step{loop.step}")

    history = tiny.expert_loop(undisturbed, settings).run(ignore, save)
    resumed = tiny.make_mixture(tiny_model_dir(), list(tiny.ROWS))
    with torch.no_grad():
        for index in range(len(tiny.ROWS)):
            for parameter in resumed.expert_parameters(index):
                parameter.add_(1.0)
    loop = tiny.expert_loop(resumed, settings)
    loop.load(tmp_path / "step2")
    assert loop.step == 2
    assert [report.losses for report in loop.run(ignore, ignore)] == [report.losses for report in history]
    expected = tiny.weights(undisturbed, zero_stage)
    for name, value in tiny.weights(resumed, zero_stage).items():
        assert torch.equal(value, expected[name]), name


def test_checkpoints_hold_only_what_is_trained(tiny_model_dir, tmp_path):
    model = tiny.make_mixture(tiny_model_dir(), ["ant"])
    trained = sum(parameter.numel() for parameter in model.expert_parameters(0))
    tiny.expert_loop(model, SETTINGS).save(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.pt"))
    assert size < 4 * (3 * trained) + 200_000
    state = torch.load(next(tmp_path.rglob("*model_states.pt")), weights_only=False)["module"]
    assert state and all(".lora_" in name for name in state)


def test_the_router_learns_with_the_experts_frozen(tiny_model_dir):
    model = tiny.make_mixture(tiny_model_dir(), list(tiny.ROWS))
    tiny.expert_loop(model, SETTINGS).run(ignore, ignore)
    before = tiny.weights(model)
    history = tiny.router_loop(model, SETTINGS).run(ignore, ignore)
    for name, value in tiny.weights(model).items():
        assert torch.equal(value, before[name]) != name.startswith("router"), name
    assert set(history[0].losses) == {"router"}


def test_a_bfloat16_base_keeps_float32_experts(tiny_model_dir):
    model = tiny.make_mixture(tiny_model_dir(), ["ant"], "bfloat16")
    start = tiny.weights(model)
    history = tiny.expert_loop(model, SETTINGS).run(ignore, ignore)
    assert {value.dtype for value in tiny.weights(model).values()} == {torch.float32}
    assert {parameter.dtype for name, parameter in model.named_parameters() if ".base.weight" in name} == {
        torch.bfloat16
    }
    assert not torch.equal(tiny.weights(model)["ant/0"], start["ant/0"])
    assert history[-1].losses["ant"] < history[0].losses["ant"]


def test_two_workers_and_every_zero_stage_give_the_same_experts(fused, tiny_model_dir, tmp_path):
    arguments = [sys.executable, tiny.__file__, str(tiny_model_dir()), str(tmp_path / "store"), str(tmp_path)]
    workers = [subprocess.Popen([*arguments, str(rank), "2"]) for rank in (0, 1)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    for stage in (0, 1, 2, 3):
        assert_same(torch.load(tmp_path / f"zero{stage}.pt"), fused[1])


def wild_loop(base, zero_stage=0, good_steps=0, every=1):
    """A loop whose second learner gets a rate of 1e6 after its first steps."""
    model = tiny.make_mixture(base, ["ant", "bee"])
    loop = tiny.expert_loop(model, replace(SETTINGS, zero_stage=zero_stage, checkpoint_every_steps=every))
    schedule = loop.learners[1].schedule
    rates = schedule.learning_rates[:good_steps] + (1e6,) * (schedule.steps - good_steps)
    loop.learners[1] = replace(loop.learners[1], schedule=replace(schedule, learning_rates=rates))
    return model, loop


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_learner_that_diverges_ends_the_run_by_name_and_nothing_of_it_is_reported(tiny_model_dir, zero_stage):
    _, loop = wild_loop(tiny_model_dir(), zero_stage, every=50)
    reports = []
    with pytest.raises(
        UserError,
        match=r"training of 'bee' diverged at step 2 of \d+: (?s:.*)lower its learning rate \(1e\+06",
    ):
        loop.run(reports.append, ignore)
    assert [report.step for report in reports] == [1]
    assert all(math.isfinite(loss) for report in loop.history for loss in report.losses.values())


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_the_last_checkpoint_is_of_weights_before_they_diverged(tiny_model_dir, tmp_path, zero_stage):
    _, loop = wild_loop(tiny_model_dir(), zero_stage, good_steps=2)
    with pytest.raises(
        UserError, match=r"'bee' diverged at step 3 of \d+: its largest weight has grown from .* to 1e\+06"
    ):
        loop.run(ignore, lambda loop: loop.save(tmp_path / f"step{loop.step}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step1", "step2"]
    good = tiny.expert_loop(
        tiny.make_mixture(tiny_model_dir(), ["ant", "bee"]), replace(SETTINGS, zero_stage=zero_stage)
    )
    good.load(tmp_path / "step2")
    assert good.step == 2
    losses = [report.losses for report in good.run(ignore, ignore)]
    assert losses[-1]["ant"] < losses[0]["ant"] and losses[3]["bee"] < 1.5 * losses[0]["bee"]


def test_a_router_that_diverges_without_a_bad_loss_is_not_written(tiny_model_dir):
    model = tiny.make_mixture(tiny_model_dir(), list(tiny.ROWS))
    with torch.no_grad():
        # Experts that do nothing give the router no gradient.
        for expert in range(len(tiny.ROWS)):
            for parameter in model.expert_parameters(expert):
                parameter.normal_(std=0.02)
    loop = tiny.router_loop(model, SETTINGS)
    rates = (1e6,) * loop.learners[0].schedule.steps
    loop.learners[0] = replace(loop.learners[0], schedule=replace(loop.learners[0].schedule, learning_rates=rates))
    with pytest.raises(
        UserError, match=r"training of 'router' diverged at step \d+ of \d+: its largest weight has grown"
    ):
        loop.run(ignore, lambda loop: pytest.fail("a checkpoint of it was written"))


def test_weights_that_are_no_numbers_are_never_written(tiny_model_dir, tmp_path):
    model, loop = wild_loop(tiny_model_dir())
    with torch.no_grad():
        model.expert_parameters(1)[0].fill_(math.nan)
        model.router_parameters()[0].fill_(math.inf)
    with pytest.raises(UserError, match=r"training of 'bee' diverged at step 1 of \d+: its weights are no numbers"):
        loop.check_weights()
    with pytest.raises(UserError, match=r"lora_A.weight holds values that are no finite numbers"):
        save_expert(model, 1, tmp_path)
    with pytest.raises(UserError, match=r"theta.0.weight holds values that are no finite numbers"):
        save_router(model, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_state_that_is_not_all_there_is_named(tiny_model_dir, tmp_path, zero_stage):
    settings = replace(SETTINGS, zero_stage=zero_stage)
    loop = tiny.expert_loop(tiny.make_mixture(tiny_model_dir(), ["ant"]), settings)
    loop.save(tmp_path / "whole")

    def refusal(folder, domains=("ant",)):
        other = tiny.expert_loop(tiny.make_mixture(tiny_model_dir(), list(domains)), settings)
        with pytest.raises(UserError, match="this training state cannot be continued") as raised:
            other.load(folder)
        return str(raised.value)

    assert "it holds no state" in refusal(tmp_path / "nowhere")
    if zero_stage == 0:
        assert "a different number of parameter groups" in refusal(tmp_path / "whole", ("ant", "bee"))
    else:
        next((tmp_path / "whole").rglob("*optim_states.pt")).unlink()
        assert "the optimizer's state of 0 of 1 workers" in refusal(tmp_path / "whole")
    states = next((tmp_path / "whole").rglob("*model_states.pt"))
    states.write_bytes(states.read_bytes()[:1000])
    refusal(tmp_path / "whole")


def test_nothing_of_the_base_changes(tiny_model_dir):
    model = tiny.make_mixture(tiny_model_dir(), ["ant"])
    before = {name: value.clone() for name, value in model.base.state_dict().items() if "lora" not in name}
    tiny.expert_loop(model, replace(SETTINGS, gradient_checkpointing=True)).run(ignore, ignore)
    after = model.base.state_dict()
    assert len(before) > 20 and all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(module.training for module in model.base.modules() if isinstance(module, torch.nn.Dropout))


def test_a_base_with_dropout_computes_the_same_with_gradient_checkpointing(tiny_model_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model_dir(), attention_dropout=0.5).save_pretrained(tmp_path)
    histories, trained = [], []
    for checkpointing in (False, True):
        model = tiny.make_mixture(tmp_path, ["ant"])
        loop = tiny.expert_loop(model, replace(SETTINGS, gradient_checkpointing=checkpointing))
        histories.append([report.losses["ant"] for report in loop.run(ignore, ignore)])
        trained.append(tiny.weights(model))
    assert histories[1] == pytest.approx(histories[0], abs=1e-5)
    assert_same(trained[1], trained[0])
