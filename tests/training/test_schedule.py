import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfmoe_ray.config import OptimizerConfig
from selfmoe_ray.training.schedule import StepRow, learning_rate, make_schedule, micro_batches, step_rows
from selfmoe_ray.training.trainers import TrainerPlan, plan_trainers


@pytest.mark.parametrize(
    ("experts_per_trainer", "workers", "devices", "expected"),
    [
        ("auto", "auto", 1, [((0, 1, 2, 3), 1)]),
        ("auto", "auto", 3, [((0, 1), 1), ((2,), 1), ((3,), 1)]),
        ("auto", "auto", 8, [((0,), 2), ((1,), 2), ((2,), 2), ((3,), 2)]),
        (4, "auto", 8, [((0, 1, 2, 3), 8)]),
        (1, 2, 1, [((0,), 2), ((1,), 2), ((2,), 2), ((3,), 2)]),
        (3, "auto", 1, [((0, 1), 1), ((2, 3), 1)]),
    ],
)
def test_plan_trainers(experts_per_trainer, workers, devices, expected):
    plans = plan_trainers(4, experts_per_trainer, workers, devices)
    assert plans == [TrainerPlan(experts, count) for experts, count in expected]


def test_every_epoch_visits_each_row_once_in_another_order():
    schedule = make_schedule(10, OptimizerConfig(batch_size=4, epochs=2), seed=0, name="math")
    assert [len(batch) for batch in schedule.batches] == [4, 4, 2, 4, 4, 2]
    first, second = ([row for batch in schedule.batches[start : start + 3] for row in batch] for start in (0, 3))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_schedule_depends_on_seed_and_name_only():
    config = OptimizerConfig(batch_size=4, epochs=1)
    assert make_schedule(10, config, 0, "math") == make_schedule(10, config, 0, "math")
    assert make_schedule(10, config, 0, "math").batches != make_schedule(10, config, 0, "coding").batches
    assert make_schedule(10, config, 0, "math").batches != make_schedule(10, config, 1, "math").batches


def test_part_of_an_epoch_is_rounded_up_to_steps():
    assert make_schedule(10, OptimizerConfig(batch_size=4, epochs=0.5), 0, "math").steps == 2
    assert make_schedule(10, OptimizerConfig(batch_size=4, epochs=1.5), 0, "math").steps == 5


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_warms_up_to_the_peak_and_follows_the_schedule(schedule):
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.2, schedule=schedule)
    rates = [learning_rate(step, 10, config) for step in range(10)]
    assert rates[0] < rates[1] < rates[2] == 1.0
    after = rates[2:]
    assert after == [1.0] * 8 if schedule == "constant" else after == sorted(after, reverse=True)
    assert rates[-1] > 0


def test_step_rows_weigh_each_learner_by_its_own_response_tokens():
    schedules = [make_schedule(4, OptimizerConfig(batch_size=2, epochs=1), 0, "a")]
    schedules.append(make_schedule(2, OptimizerConfig(batch_size=2, epochs=1), 0, "b"))
    targets = [[3, 5, 7, 9], [1, 2]]
    rows = step_rows(0, schedules, [[10] * 4, [10] * 2], targets)
    for learner in (0, 1):
        assert sum(targets[learner][row.row] * row.weight for row in rows if row.learner == learner) == pytest.approx(1)
    assert {row.learner for row in step_rows(1, schedules, [[10] * 4, [10] * 2], targets)} == {0}


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=40),
    workers=st.integers(1, 4),
    size=st.integers(1, 9),
)
def test_micro_batches_keep_every_row_once_and_all_workers_in_step(lengths, workers, size):
    rows = [StepRow(0, index, length, 0.5) for index, length in enumerate(lengths)]
    plan = micro_batches(rows, workers, size)
    flat = [row for worker in plan for micro_batch in worker for row in micro_batch]
    assert sorted(row.row for row in flat if row.weight) == list(range(len(lengths)))
    assert len(plan) == workers and len({len(worker) for worker in plan}) == 1
    assert all(1 <= len(micro_batch) <= size for worker in plan for micro_batch in worker)
    for worker in plan:
        longest = [micro_batch[0].length for micro_batch in worker]
        assert longest == sorted(longest, reverse=True)
