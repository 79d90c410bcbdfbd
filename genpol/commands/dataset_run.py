"""A run of a command that learns from a dataset: open, learn, save, summarise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from genpol.commands.dataset_options import DatasetRunOptions
from offline.data.dataset_config import DatasetConfig


class Saveable(Protocol):
    """What was learnt."""

    @property
    def meta(self) -> dict[str, Any]: ...
    def save(self, folder: Path) -> None: ...


S = TypeVar("S", bound=DatasetConfig)
L = TypeVar("L", bound=Saveable)


def dataset_run(
    config: DatasetRunOptions,
    settings: type[S],
    learn: Callable[..., L],
    *,
    command: str,
    folder: str,
    shown: Mapping[str, str],
    summary: Mapping[str, str],
) -> tuple[L, dict[str, float], Path]:
    """Learn from `config.data` in the run folder `config.output`.

    Args:
        config: the command's options; those of `settings` among them.
        settings: what `learn` is told, such as `CloneConfig`.
        learn: `clone` or `train_value`.
        command: its name.
        folder: of what was learnt, inside the run folder.
        shown: metrics beside the progress bar, with the short name of each.
        summary: numbers of `meta` that the summary adds to the last metrics, by their name there.

    Returns:
        What was learnt, the last metrics, and where it was saved.

    Raises:
        InputError: no such dataset, or it cannot be learnt from; nothing is left on disk. Or the
            result cannot be written.
    """
    from genpol.runs.device import pick_device
    from genpol.training.run_folder import training_run
    from offline.files import disk_errors
    from offline.networks.language import embedder
    from robots.datasets.open import open_dataset

    options: Any = config
    device = pick_device(config.device)
    language = embedder(config.language_model) if config.language_model else None
    episodes = open_dataset(config.data)
    with training_run(options, command, shown) as training:
        learned = learn(
            episodes,
            settings(**{f.name: getattr(config, f.name) for f in fields(settings)}),
            log=training.log,
            device=device,
            language=language,
            stop=training.stopped,
            warn=lambda text: training.bar.write(f"warning: {text}"),
        )
        learned.meta.update(data=config.data, language_model=config.language_model)
        path = training.run.folder / folder
        with disk_errors(f"cannot write {path}", "Free some space or pass another --output"):
            learned.save(path)
        counts = {name: learned.meta[key] for name, key in summary.items()}
        training.run.summary(training.last | counts)
    if training.stopped():
        print(f"stopped after step {learned.meta['steps']} of {options.steps}")
    return learned, training.last, path
