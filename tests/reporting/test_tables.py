import pytest

from selfmoe_ray.domains.domain import load_domains
from selfmoe_ray.reporting import tables
from selfmoe_ray.reporting.collect import collect


@pytest.fixture
def facts(config, finished):
    return collect(config, load_domains(config.domains), finished)


def test_the_lowest_nll_is_marked_and_the_oracle_never(facts):
    table = tables.nll(facts, "held_out")
    assert [row[0] for row in table.rows][-2:] == ["MiXSE", "own domain's expert (oracle)"]
    assert table.reference == {len(table.rows) - 1}
    mixse = len(table.rows) - 2
    assert table.marked == {(mixse, 1), (mixse, 2), (mixse, 3)}
    assert table.rows[mixse][4:] == [None, None]
    assert [column.note for column in table.columns] == ["", "n 5", "n 5", "", "", ""]


def test_rejects_are_counted_by_phase_and_reason(facts):
    table = tables.rejects(facts)
    assert table.rows[0] == ["brainstorm", "malformed", 3, 3]
    assert ["respond", "truncated", 2, 2] in table.rows


def test_seconds_of_stages_side_by_side_count_once(facts):
    rows = {row[0]: row[1:] for row in tables.stages(facts).rows}
    assert rows["generate"] == [10.0, 2000, 200.0]
    assert rows["experts"] == [20.0, 10000, 500.0]
    assert rows["all"][0] == pytest.approx(10 + 20 + 20 + 0.5 + 30)


def test_parameter_shares_are_of_the_base(facts):
    last = tables.parameters(facts).rows[-1]
    assert last[1] == 2 * 2_442_240 + 69_120
    assert last[2] == pytest.approx(0.0368, abs=1e-4)
