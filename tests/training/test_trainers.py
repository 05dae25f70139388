"""The devices of a training worker."""

import pytest

from selfmoe_ray.config import TrainingResources
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.hardware import Cluster
from selfmoe_ray.training.trainers import TrainerPlan, count_devices, worker_devices


def resources(**fields) -> TrainingResources:
    return TrainingResources(**fields)


@pytest.mark.parametrize(
    ("fields", "cluster", "devices", "workers", "expected"),
    [
        ({}, Cluster((2,), (0,)), 1, 1, (2, 0.0)),
        ({}, Cluster((8, 8), (0, 0)), 2, 1, (8, 0.0)),
        ({}, Cluster((32, 32), (8, 8)), 16, 4, (1, 1.0)),
        ({"gpus_per_worker": 0.5}, Cluster((4,), (1,)), 2, 2, (1, 0.5)),
        ({"gpus_per_worker": 0, "cpus_per_worker": 3}, Cluster((8,), (4,)), 1, 2, (3, 0.0)),
    ],
)
def test_worker_shape(fields, cluster, devices, workers, expected):
    assert count_devices(resources(**fields), cluster) == devices
    shape = worker_devices(resources(**fields), [TrainerPlan((0,), workers)], cluster)
    assert (shape.cpus, shape.gpus) == expected


@pytest.mark.parametrize("fields", [{"gpus_per_worker": 1}, {"cpus_per_worker": 3}, {"cpus_per_worker": 2}], ids=str)
def test_impossible_resources_say_what_was_asked_and_what_there_is(fields):
    with pytest.raises(UserError, match=r"2 worker\(s\).*room for [01] .*CPUs by node: \[2\]"):
        worker_devices(resources(**fields), [TrainerPlan((0,), 2)], Cluster((2,), (0,)))
