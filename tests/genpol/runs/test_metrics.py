"""metrics.csv: growing columns, one row per step, kills and resumes."""

from __future__ import annotations

import csv

import pytest

from genpol.runs.metrics import MetricsCsv
from offline.errors import InputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def test_a_new_column_leaves_blanks_in_older_rows(path):
    table = MetricsCsv(path)
    table.log(1, {"loss": 0.5})
    table.log(2, {"loss": 0.25, "eval/reward": 2})
    table.log(3, {"eval/reward": 3.0})
    assert path.read_text() == "step,loss,eval/reward\n1,0.5,\n2,0.25,2\n3,,3.0\n"


def test_a_row_is_on_disk_when_log_returns(path):
    table = MetricsCsv(path)
    for step in range(5):
        table.log(step, {"loss": 1.0})
        assert path.read_text().endswith(f"\n{step},1.0\n")


def test_the_same_step_again_fills_the_same_row(path):
    table = MetricsCsv(path)
    table.log(1, {"loss": 0.123456789, "kl": 1.0})
    table.log(2, {"loss": 0.123456789})
    table.log(2, {"loss": 0.5})  # a shorter row: nothing of the longer one may stay behind
    assert path.read_text() == "step,loss,kl\n1,0.123456789,1.0\n2,0.5,\n"
    table.log(2, {"kl": 2.0})
    table.log(2, {"eval/reward": 4.0})
    table.log(3, {"kl": 3.0})
    assert path.read_text() == (
        "step,loss,kl,eval/reward\n1,0.123456789,1.0,\n2,0.5,2.0,4.0\n3,,3.0,\n"
    )


def test_floats_read_back_bit_for_bit(path):
    values = [0.1 + 0.2, 1e-30, 3.5e38, float("inf"), -0.0]
    table = MetricsCsv(path)
    for step, value in enumerate(values):
        table.log(step, {"x": value})
    with open(path, newline="") as file:
        assert [float(row["x"]).hex() for row in csv.DictReader(file)] == [v.hex() for v in values]


def test_steps_do_not_go_backwards(path):
    table = MetricsCsv(path)
    table.log(5, {"loss": 1.0})
    with pytest.raises(ValueError, match="step 4 after step 5"):
        table.log(4, {"loss": 1.0})


@pytest.mark.parametrize("torn", ["3", "3,0.1", "3,0.125,7", "\0\0\0", "3,0.1\n4"])
def test_a_torn_last_line_is_dropped(path, torn):
    path.write_text("step,loss,kl\n1,0.5,0.0\n2,0.25,0.5\n" + torn)
    table = MetricsCsv(path)
    assert path.read_text() == "step,loss,kl\n1,0.5,0.0\n2,0.25,0.5\n"
    table.log(3, {"loss": 0.125, "kl": 1.0})
    assert path.read_text().splitlines()[-1] == "3,0.125,1.0"


@pytest.mark.parametrize("torn", ["", "st", "step,lo"])
def test_a_torn_header_is_an_empty_table(path, torn):
    path.write_text(torn)
    MetricsCsv(path).log(1, {"loss": 1.0})
    assert path.read_text() == "step,loss\n1,1.0\n"


def test_killed_and_resumed_has_each_row_once(path):
    """The table of a run killed at step 5 and resumed from step 3 is the uninterrupted one."""

    def log(table, steps):
        for step in steps:
            table.log(step, {"loss": 1 / step} | ({"eval/reward": step} if step % 3 == 0 else {}))

    log(MetricsCsv(path), range(1, 9))
    uninterrupted = path.read_bytes()
    path.unlink()
    log(MetricsCsv(path), range(1, 6))
    with open(path, "a") as file:
        file.write("6,0.1")
    resumed = MetricsCsv(path)
    resumed.truncate(3)
    assert path.read_text().splitlines()[-1].startswith("3,")
    log(resumed, range(4, 9))
    assert path.read_bytes() == uninterrupted


def test_truncating_everything_keeps_the_columns(path):
    table = MetricsCsv(path)
    table.log(4, {"loss": 1.0})
    table.truncate(0)
    assert path.read_text() == "step,loss\n"
    assert table.empty
    table.log(1, {"loss": 2.0})
    assert path.read_text() == "step,loss\n1,2.0\n"


def test_names_with_commas_are_quoted(path):
    table = MetricsCsv(path)
    table.log(1, {"reward/a,b": 1.0})
    assert MetricsCsv(path).columns == ["step", "reward/a,b"]


def test_another_programs_table_is_left_alone(path):
    path.write_text("name,value\na,1\n")
    with pytest.raises(InputError, match='a column "step"'):
        MetricsCsv(path)
    assert path.read_text() == "name,value\na,1\n"
