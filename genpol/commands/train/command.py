"""`genpol train`: offline-to-online reinforcement learning, EXPO and its peers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genpol.commands.dataset_options import named, written
from genpol.commands.train.options import CHANGEABLE, Train, check, require_preset
from genpol.runs.machine import learning, on_this_machine

if TYPE_CHECKING:
    from genpol.commands.train.inputs import Given
    from genpol.training.session import Clock


def run(config: Train) -> None:
    """Train, or go on with a run; see `train` for what it leaves behind.

    Raises:
        InputError: for what a user can mend; nothing has been written then.
    """
    from genpol.runs.quiet import hush

    hush()
    from genpol.runs.allocator import keep_freed_memory
    from genpol.runs.resuming import restored
    from genpol.training.session import Clock

    clock = Clock()
    keep_freed_memory()
    require_preset(config)
    stored: dict[str, Any] = {}
    if config.resume:
        config, stored = restored(config, "train", CHANGEABLE)
    check(config)
    train(config, stored, clock)


@on_this_machine(learning)
def train(
    config: Train, stored: dict[str, Any], clock: Clock, given: Given | None = None
) -> dict[str, float]:
    """The whole run, or the rest of it; returns the summary, empty if it had none left to do.

    Leaves policy/, value/, metrics.csv, summary.json and checkpoints/ in the run folder.

    Raises:
        InputError: for what a user can mend.
        Interrupted: a signal stopped it.
    """
    from tqdm import tqdm

    from genpol.commands.train.inputs import load_inputs
    from genpol.commands.train.wiring import make_loop, make_rounds, make_session
    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.rng import seed_everything
    from genpol.runs.run import Run
    from genpol.training.report import write_page
    from offline.errors import InputError

    seed_everything(config.seed)
    inputs = load_inputs(config, given)
    if stored and stored.get("data_fingerprint") != inputs.fingerprint:
        raise InputError(
            f'--data {named(config.data)} has changed since the run in "{config.resume}" began: '
            "restore it, or start a new run"
        )
    envs = inputs.make_envs()
    loop = make_rounds(config, inputs, envs) or make_loop(config, inputs, envs)
    document = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    document |= {
        "data": written(config.data),
        "env": inputs.env,
        "data_fingerprint": inputs.fingerprint,
    }
    with (
        Run(
            config.output, document, command="train", wandb=config.wandb, resume=bool(stored)
        ) as folder,
        InterruptGuard() as guard,
        tqdm(total=config.offline_updates + config.steps, unit="step", smoothing=0.05) as bar,
    ):
        if stored:  # a later bare --resume goes on with these
            folder.amend({name: document[name] for name in CHANGEABLE})
        session = make_session(config, inputs, loop, folder, clock, bar)
        if inputs.note is not None:
            bar.write(inputs.note)
        session.restore()
        if session.complete:
            bar.write(
                f"{config.output} has already run {loop.progress} steps; raise --steps to go on"
            )
            if (folder.folder / "summary.json").exists():
                return {}
        bar.update(loop.progress - bar.n)
        try:
            done = session.go_on(lambda: guard.stop)
        except InputError as error:
            raise session.note(error) from error
        finally:
            session.close()
            envs.close()
        if done:
            summary = session.finish()
            if inputs.make_env is not None:
                write_page(config.output)
    if not done:
        where = f"after step {loop.progress}" if session.saved >= 0 else "while pretraining"
        raise guard.interrupted(
            f"stopped {where}; to continue: genpol train --resume {config.output}"
        )
    print_outcome(config, summary)
    return summary


def print_outcome(config: Train, summary: dict[str, float]) -> None:
    """One line of what came out."""
    seconds = summary["time/cpu_seconds"]
    spent = f"{seconds:.0f} CPU-seconds; run folder {config.output}"
    if "eval/return" not in summary:
        print(f"{summary['train/updates']:.0f} updates, not evaluated; {spent}")
        return
    result = f"return {summary['eval/return']:.4g}"
    if summary["eval/success"] == summary["eval/success"]:  # not NaN
        share, low, high = (summary[f"eval/success{end}"] for end in ("", "_low", "_high"))
        result = f"success {100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}], {result}"
    print(f"{result} on {config.eval_episodes} layouts; {spent}")
