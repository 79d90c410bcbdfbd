"""`genpol value`: train a critic offline, which steers any policy of the same task."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from offline.critics.value_config import ValueConfig

if TYPE_CHECKING:
    from offline.critics.value import ValueFunction

# What a training run reports, from the metrics it logs.
_SHOWN = {"critic/td_loss": "td", "critic/q_data": "q"}


@dataclass(frozen=True, kw_only=True)
class Value(ValueConfig):
    """Train a critic on a dataset, successes and failures (Cal-QL or IQL), for `genpol steer`."""

    data: str
    """Dataset: a .hdf5 file, a LeRobot folder, or minari:NAME; see `genpol data info`."""
    language_model: str | None = None
    """Show the critic the instruction: "shipped", or a folder of a sentence encoder."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default cuda where there is one."""
    output: Path = Path("runs/value")
    """Run folder; the value function is in its value/."""
    wandb: Literal["online", "offline", "disabled"] | None = None
    """Where wandb logs; default online when logged in, else offline."""


def run(config: Value) -> None:
    """Train, and leave value/, metrics.csv and summary.json in the run folder.

    Raises:
        InputError: no such dataset, one without successes, or an option out of range.
    """
    from genpol.runs.quiet import hush

    hush()
    config.check()
    train(config)


def train(config: Value) -> ValueFunction:
    """The whole run; returns the critic, which is also saved."""
    from genpol.runs.device import pick_device
    from genpol.runs.files import disk_errors
    from genpol.training.run_folder import training_run
    from offline.critics.train_value import train_value
    from offline.networks.language import embedder
    from robots.datasets.open import open_dataset

    device = pick_device(config.device)
    language = embedder(config.language_model) if config.language_model else None
    episodes = open_dataset(config.data)
    settings = ValueConfig(**{f.name: getattr(config, f.name) for f in fields(ValueConfig)})
    with training_run(config, "value", _SHOWN) as training:
        value = train_value(
            episodes,
            settings,
            log=training.log,
            device=device,
            language=language,
            stop=training.stopped,
            warn=lambda text: training.bar.write(f"warning: {text}"),
        )
        value.meta |= {"data": config.data, "language_model": config.language_model}
        folder = training.run.folder / "value"
        with disk_errors(f"cannot write {folder}", "Free some space or pass another --output"):
            value.save(folder)
        training.run.summary(_summary(training.last, value))
    if training.stopped():
        print(f"stopped after step {value.meta['steps']} of {config.steps}")
    auc, rank = (
        training.last.get(f"value/{name}", float("nan"))
        for name in ("auc_success", "rank_correlation")
    )
    print(
        f"held out: AUC of success {auc:.3f}, rank correlation with the return {rank:.3f}; "
        f"value function in {folder}"
    )
    return value


def _summary(last: dict[str, float], value: ValueFunction) -> dict[str, Any]:
    counts = {key: float(value.meta[key]) for key in ("successes", "failures", "steps")}
    return last | {f"data/{k}" if k != "steps" else "train/steps": v for k, v in counts.items()}
