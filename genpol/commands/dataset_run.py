"""A run of a command that learns from a dataset: open, learn, save, summarise, go on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from genpol.commands.dataset_options import DatasetRunOptions, named, written
from genpol.commands.opened import opened
from genpol.runs.machine import learning, on_this_machine
from offline.data.dataset_config import DatasetConfig
from offline.errors import InputError

if TYPE_CHECKING:
    from genpol.training.dataset_session import HasResult, Saveable

S = TypeVar("S", bound=DatasetConfig)
C = TypeVar("C", bound=DatasetRunOptions)


def given_or_restored(
    config: C, command: str, changeable: Collection[str], fixed: Mapping[str, str] | None = None
) -> tuple[C, dict[str, Any]]:
    """The options of a new run, or of the one that --resume goes on with and its config.json.

    Args:
        config: as given.
        command: its name.
        changeable: options that a resumed run may have differently.
        fixed: reasons why some may not.

    Raises:
        InputError: no --data; or see `genpol.runs.resuming.restored`.
    """
    if config.resume is None:
        if not config.data:
            raise InputError(f"--data is needed; `genpol {command} --help` lists the options.")
        return config, {}
    from genpol.runs.resuming import restored

    try:
        return restored(config, command, changeable)
    except InputError as error:
        reason = next((r for name, r in (fixed or {}).items() if f"--{name} " in str(error)), None)
        raise type(error)(f"{error} ({reason})" if reason else str(error)) from None


@on_this_machine(learning)
def dataset_run(
    config: DatasetRunOptions,
    stored: Mapping[str, Any],
    settings: type[S],
    learn: Callable[..., HasResult],
    *,
    command: str,
    folder: str,
    shown: Mapping[str, str],
    summary: Mapping[str, str],
    changeable: Collection[str],
    document: Mapping[str, Any] | None = None,
) -> tuple[Saveable, dict[str, float], Path] | None:
    """Learn from `config.data` in the run folder `config.output`, or go on with that.

    Args:
        config: the command's options; those of `settings` among them.
        stored: what config.json holds of a run that goes on; empty for a new one.
        settings: what `learn` is told, such as `CloneConfig`.
        learn: `Cloning` or `ValueTraining`.
        command: its name.
        folder: of what was learnt, inside the run folder.
        shown: metrics beside the progress bar, with the short name of each.
        summary: numbers of `meta` that the summary adds to the last metrics, by their name there.
        changeable: options that a resumed run may have differently.
        document: the options that config.json gets; None: all of them.

    Returns:
        What was learnt, the last metrics, and where it was saved. None where all had been done.

    Raises:
        InputError: no such dataset, it has changed, or it cannot be learnt from; a new run leaves
            nothing on disk then. Or learning diverged, or the result cannot be written.
        Interrupted: a signal stopped it.
    """
    from tqdm import tqdm

    from genpol.runs.device import pick_device
    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.run import Run
    from genpol.training.dataset_session import DatasetSession
    from offline.networks.language import embedder

    options: Any = config
    device = pick_device(config.device)
    language = embedder(config.language_model) if config.language_model else None
    learning = learn(
        opened(config.data, config),
        settings(**{f.name: getattr(config, f.name) for f in fields(settings)}),
        device=device,
        language=language,
        warn=lambda text: print(f"warning: {text}"),
    )
    known = stored.get("data_fingerprint")
    if known not in (None, learning.fingerprint):
        raise InputError(
            f'--data {named(config.data)} has changed since the run in "{config.resume}" began '
            f"(fingerprint {known}, now {learning.fingerprint}): restore it, or start a new run"
        )
    entries = asdict(config) if document is None else document
    document = {k: str(v) if isinstance(v, Path) else v for k, v in entries.items()}
    document["data"] = written(config.data)
    document["data_fingerprint"] = learning.fingerprint
    output = config.output
    with (
        Run(output, document, command=command, wandb=config.wandb, resume=bool(stored)) as run,
        InterruptGuard() as guard,
        tqdm(total=options.steps, unit="step", smoothing=0.05) as bar,
    ):
        session = DatasetSession(
            learning,
            run,
            config,
            command=command,
            folder=folder,
            meta={"data": written(config.data), "language_model": config.language_model},
            summary=summary,
            bar=bar,
            shown=shown,
        )
        if stored:
            session.restore()
            if session.steps.complete and session.has_ended:
                bar.write(f"{output} has already run {session.steps.step} steps")
                return None
            session.begin_again()
            # A later bare --resume goes on with these.
            run.amend({name: document[name] for name in changeable})
        done = session.go_on(lambda: guard.stop)
        if done:
            learnt = session.finish()
    if not done:
        raise guard.interrupted(
            f"stopped after step {session.steps.step} of {options.steps}; to continue: "
            f"{session.how_to_go_on()}"
        )
    return learnt, session.steps.metrics, session.path
