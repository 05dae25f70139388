"""Which items a pool is given after it died, with pools that die of some of them."""

from __future__ import annotations

from selfmoe_ray.engine.recovery import Recovery

IN_FLIGHT = 40


def run(recovery: Recovery[int], poisonous: set[int], at_once: int = 24) -> tuple[list[int], list[int], list[int]]:
    """Feed a pool that runs `at_once` items together and dies with all of them when one is poisonous.

    Returns what was answered, what was given up, and the sizes of what was given.
    """
    answers: list[int] = []
    given_up: list[int] = []
    chunks = []
    while not recovery.is_done:
        items = recovery.next()
        chunks.append(len(items))
        for start in range(0, len(items), at_once):
            running = items[start : start + at_once]
            if poisonous & set(running):
                given_up += recovery.died()
                break
            answers += recovery.answered(running)
    assert len(set(answers)) == len(answers) and not set(answers) & set(given_up)
    return answers, given_up, chunks


def test_a_healthy_pool_is_given_all_at_once() -> None:
    answers, given_up, chunks = run(Recovery(range(100), IN_FLIGHT), set())
    assert answers == [*range(100)] and not given_up and chunks == [100]


def test_one_bad_item_is_found_and_costs_no_other() -> None:
    answers, given_up, chunks = run(Recovery(range(200), IN_FLIGHT), {70})
    assert len(answers) == 199 and given_up == [70]
    assert chunks[0] == 200 and chunks[1] == 32 and chunks[-1] > 100 and len(chunks) < 40


def test_several_bad_items_are_all_found() -> None:
    answers, given_up, _ = run(Recovery(range(100), IN_FLIGHT), {3, 50, 97})
    assert len(answers) == 97 and given_up == [3, 50, 97]


def test_a_pool_that_was_killed_once_loses_no_item() -> None:
    recovery = Recovery(range(100), IN_FLIGHT)
    recovery.next()
    assert recovery.died() == []
    answers, given_up, chunks = run(recovery, set())
    assert len(answers) == 100 and not given_up
    assert chunks == [32, 8, 60], "only those that were in the engines go in chunks"


def test_a_bad_item_outside_of_what_was_held_to_be_in_flight_is_found_too() -> None:
    _, given_up, _ = run(Recovery(range(200), in_flight=4), {150}, at_once=200)
    assert given_up == [150]


def test_a_pool_that_may_start_anew_is_given_the_same_before_it_is_given_less() -> None:
    recovery = Recovery(range(100), IN_FLIGHT, restarts=2)
    sizes = []
    for _ in range(4):
        sizes.append(len(recovery.next()))
        assert recovery.died() == []
    assert sizes == [100, 100, 100, 32]
    recovery = Recovery(range(100), IN_FLIGHT, restarts=1)
    for place in (0, 10, 20, 30):
        recovery.answered(recovery.next()[:10])
        assert recovery.died() == [], "not in a row: something was answered each time"
        assert len(recovery.owed) == 90 - place
    assert recovery.next() == [*range(40, 100)]


def test_what_is_added_is_given_beside_what_is_out_but_not_beside_suspects() -> None:
    recovery = Recovery(range(3), IN_FLIGHT)
    assert recovery.next() == [0, 1, 2] and recovery.next() == []
    recovery.add([3, 4])
    assert recovery.next() == [3, 4]
    recovery.died()
    recovery.add([5])
    assert recovery.next() == [0, 1, 2, 3, 4] and recovery.next() == []
    assert recovery.answered([0, 1, 2, 3, 4, 4]) == [0, 1, 2, 3, 4]
    assert recovery.next() == [5]


def test_a_pool_that_always_dies_is_hopeless() -> None:
    recovery = Recovery(range(100), IN_FLIGHT)
    deaths = 0
    while not recovery.is_hopeless:
        recovery.next()
        recovery.died()
        deaths += 1
        assert deaths < 50
    assert len(recovery.owed) == 97
