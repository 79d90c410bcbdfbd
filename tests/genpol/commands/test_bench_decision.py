"""`genpol bench decision`: every kind of policy, base and steered, and the parts of a decision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genpol.benchmarks import decision as bench
from genpol.commands.bench.decision import PARTS, BenchDecision, run
from genpol.steering.deadline import Laps


def test_the_summary_and_the_table(tmp_path, capsys):
    config = BenchDecision(decisions=1, num_candidates=3, device="cpu", output=tmp_path)
    run(config)
    summary = json.loads(Path(tmp_path / "summary.json").read_text())
    for kind in config.policies:
        for name in ("base_p50", "base_p95", "steered_p50", "steered_p95", *PARTS):
            assert summary[f"bench/{kind}_{name}_ms"] > 0, (kind, name)
    told = capsys.readouterr().out
    assert "milliseconds on cpu, K = 3" in told and told.count("\n") == 5


def test_parts_are_of_steered_decisions_alone():
    arms = bench.make_arms("gaussian", 4, "cpu", 0)
    timed = bench.time_decisions(arms, 21, 0)
    assert len(timed.base) == len(timed.steered) == 2 * bench.STATES  # rounded up
    assert set(timed.parts) == set(PARTS)
    assert sum(timed.parts.values()) < 20 * max(timed.steered)


class Event:
    """As CUDA's, on a clock of its own: each is recorded two milliseconds after the one before."""

    now, waited = 0.0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:1"
        Event.now += 2.0
        self.at = Event.now

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at

    def synchronize(self) -> None:
        Event.waited += 1


def test_a_gpus_laps_are_events_and_wait_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    laps = Laps(torch.device("cuda:1"))
    for part in ("propose", "encode", "propose"):
        laps.mark(part)
    assert Event.waited == 0
    assert laps.seconds() == pytest.approx({"propose": 0.004, "encode": 0.002})
    assert Event.waited == 1
