"""What training commands share: the run folder, a progress bar, and interrupt handling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from genpol.runs.interrupts import InterruptGuard
from genpol.runs.run import Run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass
class TrainingRun:
    """What a training function is given."""

    run: Run
    guard: InterruptGuard
    bar: Any
    shown: Mapping[str, str]
    last: dict[str, float] = field(default_factory=dict)
    """The latest metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log a row and show its main numbers."""
        self.run.log(step, metrics)
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(
            {name: f"{metrics[key]:.4g}" for key, name in self.shown.items() if key in metrics}
        )
        self.last |= metrics

    def stopped(self) -> bool:
        """Whether Ctrl-C or SIGTERM asked to stop."""
        return self.guard.stop


@contextmanager
def training_run(
    config: DataclassInstance, command: str, shown: Mapping[str, str]
) -> Iterator[TrainingRun]:
    """Open the run folder `config.output` for a command that trains `config.steps` steps.

    Args:
        config: the command's options, with `output`, `steps` and `wandb`.
        command: its name.
        shown: metrics beside the progress bar, with the short name of each.
    """
    options: Any = config
    document = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    with (
        Run(options.output, document, command=command, wandb=options.wandb) as run,
        InterruptGuard() as guard,
        tqdm(total=options.steps, unit="step", smoothing=0.05) as bar,
    ):
        yield TrainingRun(run, guard, bar, shown)
