"""How many threads PyTorch computes in."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from offline import threads
from offline.errors import InputError
from offline.threads import Convolution, Product, choose, in_threads, typical_of

WIDE = Product(256, 1024, 1024)


@pytest.fixture(autouse=True)
def four_processors(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "processors", lambda: 4)


def timed(monkeypatch, seconds):
    """Make operations take so many seconds by the number of threads; returns what was tried."""
    tried = []

    def times(operation, counts):
        tried.append(tuple(counts))
        return [seconds[count] for count in counts]

    monkeypatch.setattr(threads, "_times", times)
    return tried


def test_an_option_comes_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    tried = timed(monkeypatch, {})
    assert choose(2, [WIDE]) == 2 and not tried
    with pytest.raises(InputError, match="--threads must be at least 1, received 0"):
        choose(0)


@pytest.mark.parametrize(("said", "count"), [("3", 3), ("2,1", 2), (" 1 ", 1)])
def test_then_the_users_own_setting(said, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    tried = timed(monkeypatch, {})
    assert choose(None, [WIDE]) == choose() == count and not tried


@pytest.mark.parametrize("said", ["", "0", "-1", "many"])
def test_a_setting_that_is_no_number_is_none(said, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert choose() == 1


def test_small_networks_get_one_without_a_measurement(monkeypatch):
    tried = timed(monkeypatch, {})
    assert choose() == choose(None, [Product(256, 512, 256)]) == 1 and not tried


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        ({1: 1.0, 2: 0.55, 4: 0.3}, 4),  # each doubling pays
        ({1: 1.0, 2: 0.55, 4: 0.5}, 2),
        ({1: 1.0, 2: 0.9, 4: 0.1}, 1),  # not clearly faster
        ({1: 1.0, 2: 3.0, 4: 9.0}, 1),  # beside other work
    ],
)
def test_wide_layers_get_what_is_clearly_faster(seconds, count, monkeypatch):
    timed(monkeypatch, seconds)
    assert choose(None, [WIDE]) == choose(None, [Convolution(8, 64, 8)]) == count


def test_numbers_that_are_no_powers_of_two(monkeypatch):
    tried = timed(monkeypatch, {1: 1.0, 2: 0.5, 4: 0.25, 6: 0.15})
    assert threads.fastest(lambda: None, 6) == 6
    assert tried == [(1, 2), (2, 4), (4, 6)]


def test_one_processor_needs_no_measurement(monkeypatch):
    monkeypatch.setattr(threads, "processors", lambda: 1)
    tried = timed(monkeypatch, {})
    assert choose(None, [WIDE]) == 1 and not tried


@pytest.mark.parametrize("work", [WIDE, Convolution(64, 2048, 64)], ids=str)
def test_a_real_measurement_is_quick_and_leaves_nothing_behind(work, monkeypatch):
    monkeypatch.setattr(threads, "processors", lambda: 2)
    before = torch.get_num_threads()
    assert 1 <= choose(None, [work]) <= 2
    assert torch.get_num_threads() == before
    operation = work.operation()
    assert torch.isfinite(operation()).all()


def test_the_number_before_comes_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), in_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before
    with in_threads(None):
        assert torch.get_num_threads() == before


def test_quotas_of_containers(tmp_path):
    assert threads._quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert threads._quota(tmp_path) is None
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000\n")
    assert threads._quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")  # the newer kind counts
    assert threads._quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert threads._quota(tmp_path) == 4


def test_typical_operations_of_networks():
    net = torch.nn.Sequential(torch.nn.Linear(8, 700), torch.nn.Linear(700, 2))
    assert typical_of(net.parameters(), 32) == [Product(32, 8, 700)]
    found = typical_of(torch.nn.Conv2d(16, 64, 3).parameters(), 32)
    assert found == [Convolution(1, 32, 32)] and not found[0].small
    assert typical_of([], 1) == []


IN_A_THREAD = """
import os, threading
import torch
from offline.threads import use_threads

def tasks():
    return len(os.listdir("/proc/self/task"))

def work():
    {first}
    a @ a
    counted.append(tasks())

use_threads(1)
a, counted, before = torch.randn(1500, 1500), [], tasks()
a @ a
assert tasks() == before
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(counted[0] - before - 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_new_thread_of_python_computes_in_what_it_is_told():
    """Else its matrix products take all processors, whatever the main thread was told."""
    source = [sys.executable, "-c", IN_A_THREAD.format(first="use_threads(1)")]
    done = subprocess.run(source, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0
