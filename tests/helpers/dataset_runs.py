"""Small runs of `genpol clone` and `genpol value` in this process, and what is left of them."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

from toy_data import line_data
from training_runs import differences, words

from genpol.cli import main
from genpol.runs import checkpoints
from genpol.runs.state_tree import unflatten

SMALL: dict[str, dict[str, Any]] = {
    "clone": {"features": 16, "width": 8, "denoising_steps": 3},
    "value": {"hidden": (8, 8)},
}
SHARED: dict[str, Any] = {
    "steps": 24,
    "batch_size": 8,
    "action_chunk": 2,
    "log_every": 5,
    "checkpoint_every": 7,
    "device": "cpu",
    "wandb": "disabled",
}
STREAMED = {"memory_gb": 1e-6}  # a kilobyte: a few of the dataset's episodes


def write_demonstrations(path: Path, **options: Any) -> Path:
    from robots.datasets.robomimic_hdf5 import write_hdf5

    data = line_data(30, **options)
    write_hdf5(path, data, spec=data.spec, env="toy/line", env_kwargs={}, seed=0)
    return path


def learn(command: str, data: Path, output: Path, **options: Any) -> int:
    """`genpol clone` or `genpol value`, small where nothing is said; the exit code."""
    return main([command, *words(data=data, output=output, **(SHARED | SMALL[command] | options))])


def resume(command: str, folder: Path, **options: Any) -> int:
    return main([command, *words(resume=folder, **options)])


def rows(folder: Path) -> list[dict[str, str]]:
    """Without what the clock says."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [
            {k: v for k, v in row.items() if k != "clone/step_ms"} for row in csv.DictReader(file)
        ]


def state(folder: Path) -> dict[str, Any]:
    """All that learning goes on from, without what the clock says."""
    found = checkpoints.latest(folder / "checkpoints")
    assert found is not None
    tree = unflatten(*found[1:])
    del tree["steps"]["seconds"], tree["random"]
    tree["steps"]["metrics"].pop("clone/step_ms", None)
    return tree


def learnt(folder: Path) -> dict[str, bytes]:
    """Weights, and the documents without times."""
    found = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        found[path.name] = path.read_bytes()
    for path in sorted(folder.glob("*/*.json")):
        document = json.loads(path.read_text())
        document["meta"]["metrics"].pop("clone/step_ms", None)
        found[path.name] = json.dumps(document).encode()
    return found


def assert_same_run(one: Path, two: Path) -> None:
    assert differences(state(one), state(two)) == []
    assert rows(one) == rows(two) and rows(one)
    assert learnt(one) == learnt(two) and len(learnt(one)) == 2
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    assert [s.pop("clone/step_ms", None) for s in summaries]
    assert summaries[0] == summaries[1]


def interrupt_at(monkeypatch, step: int, number: signal.Signals | None) -> None:
    """A signal, or a death that leaves everything as it is, after a step and what is due there."""
    from genpol.training.dataset_session import DatasetSession

    after = DatasetSession._after

    def interrupted(self):
        after(self)
        if self.steps.step == step and number is None:
            raise KeyboardInterrupt
        if self.steps.step == step:
            signal.raise_signal(number)

    monkeypatch.setattr(DatasetSession, "_after", interrupted)
