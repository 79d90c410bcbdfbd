"""The demo's part about world models: SAC with a world model and SAC without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genpol.commands.train.command import Train
    from genpol.reports.page import Panel
    from genpol.training.record import TrainRecord

# What both runs are alike in: steps, updates per step, batches, networks, evaluation.
SHARED: dict[str, Any] = {
    "agent": "sac",
    "env": "InvertedPendulum-v5",
    "steps": 1_800,
    "max_steps": 300,  # of an episode: long enough to see who balances, and a film of 15 seconds
    "start_steps": 300,
    "update_after": 300,
    "utd": 5.0,
    "policy_utd": 5.0,
    "batch_size": 128,
    "hidden": (128, 128),
    "lr": 1e-3,
    "target_rate": 0.01,
    "eval_every": 200,
    "eval_episodes": 10,
    "log_every": 100,
    "videos": 1,
    "device": "cpu",
    "wandb": "offline",
}
MODEL: dict[str, Any] = {  # what only one of them has
    "world_model": "mle",
    "ensemble": 3,
    "elites": 2,
    "model_hidden": (64, 64),
    "model_every": 100,
    "model_updates": 300,
    "imagined_fraction": 0.95,
    "rollouts_per_step": 40,
    "rollout_lengths": (1, 5),
    "rollout_schedule": (300, 1_000),
    "imagined_capacity": 50_000,
}
ARMS: dict[str, bool] = {"with-model": True, "without": False}  # folder -> has a model


def settings(folder: Path, arm: str, seed: int, threads: int = 1) -> Train:
    """Of one of ARMS, which runs in a folder of its own within `folder`."""
    from genpol.commands.train.command import Train

    own = MODEL if ARMS[arm] else {}
    options = SHARED | own | {"seed": seed, "threads": threads}
    return Train.recommended(**options, output=folder / arm)


def train_both(folder: Path, seed: int, threads: int = 1) -> None:
    """Train either arm."""
    from genpol.commands.train.command import check, train
    from genpol.training.session import Clock

    for arm in ARMS:
        config = settings(folder, arm, seed, threads)
        check(config)
        how = "with a world model" if ARMS[arm] else "without one"
        print(f"SAC {how}: {config.steps:,} steps, a minute or more")
        train(config, {}, Clock())


def panel(folder: Path) -> Panel:
    """What came of both runs in `folder`, in words, one figure and a film."""
    from genpol.reports.page import Panel, code, figure, paragraph
    from genpol.training.curves import comparison_chart
    from genpol.training.record import read_run, same_again

    imagining, plain = (read_run(folder / arm) for arm in ARMS)
    curves = {"with the model": imagining.log, "without": plain.log}
    spent = [_level(run, "time/cpu_seconds") for run in (imagining, plain)]
    caption = (
        "Mean return on the same starts. Each is one run with one seed, so this does not show "
        "which of them is better. The task was chosen because it is quick. The settings were "
        "chosen on seed 1000 so that the run with the model learns. CPU-seconds in all: "
        f"{spent[0]:.0f} with the model, its training and imagination included, and "
        f"{spent[1]:.0f} without."
    )
    return Panel(
        "A world model: SAC with one, and without",
        "\n".join(
            [
                paragraph(_story(imagining.config)),
                paragraph(_result(imagining, plain)),
                figure(comparison_chart(curves), caption),
                paragraph(_model_errors(imagining)),
                _film(imagining),
                paragraph(
                    "Command of the run with the model; the other has neither --world-model nor "
                    "its options:"
                ),
                code(same_again(imagining)),
            ]
        ),
    )


def _story(config: dict[str, Any]) -> str:
    layers = " x ".join(map(str, config["model_hidden"]))
    longest = config["rollout_lengths"][1]
    return (
        "SAC learns from scratch to balance a pole on a cart, in two runs. Both runs "
        f"take {config['steps']:,} environment steps, the first {config['start_steps']} of them at "
        f"random, and both make {config['utd']:g} updates of the critic and "
        f"{config['policy_utd']:g} of the policy per step after that, from batches of "
        f"{config['batch_size']}. They differ in their batches. Without a model, every "
        f"transition is real. With a model, {100 * config['imagined_fraction']:.0f} % are "
        f"imagined: {config['ensemble']} networks of {layers} units learn the effect of an action "
        "and when the pole falls. The policy acts in them, from states of real episodes, for up "
        f"to {longest} steps (MBPO, arXiv 1906.08253)."
    )


def _result(imagining: TrainRecord, plain: TrainRecord) -> str:
    before, with_model = (imagining.at("eval/return", step) for step in imagining.ends)
    return (
        f"Mean return on {imagining.config['eval_episodes']} starts that neither trains on: "
        f"{with_model:.4g} with the model and {_level(plain, 'eval/return'):.4g} without, after "
        f"{imagining.so_far(imagining.ends[1])}; {before:.4g} before training. Each step counts 1 "
        "until the pole leans by more than 0.2 radians. Episodes end after "
        f"{imagining.config['max_steps']} steps, which is the highest return. These are the last "
        "evaluations, not the best ones."
    )


def _model_errors(run: TrainRecord) -> str:
    """How wrong the model is on what it did not learn from: of the state, and of the value."""
    error, value = (
        _level(run, f"model/{name}") for name in ("holdout_mse", "value_error_relative")
    )
    return (
        "Errors of the model after its last training, on held-out real steps: the squared error of "
        f"the predicted change of state is {100 * error:.2g} % of the error of predicting the mean "
        "change. The critic's value of the predicted next state is wrong by "
        f"{value:.2g} standard deviations of that value, on average. Both are errors of single "
        "steps in states like those visited. They do not include how errors add up over imagined "
        "steps, or errors of the critic itself."
    )


def _film(run: TrainRecord) -> str:
    """The first start before and after training, of whichever films there are."""
    from genpol.reports.page import paragraph
    from genpol.steering.report import film

    shown = []
    for step, when in zip(run.ends, ("before training", "after it"), strict=True):
        if (found := run.outcomes.get(step)) is not None:
            length, most = found.lengths[0], run.config["max_steps"]
            when += f": falls after {length} steps" if length < most else f": stands for {most}"
        for path in sorted((run.folder / "videos").glob(f"step-{step:06d}-episode-0.*")):
            shown.append(film(path, f"{run.folder.name}/videos/{path.name}", when))
    words = (
        "The run with the model, on the first of these starts; it was not chosen. The film of an "
        "episode that ends early is short, and repeats."
    )
    return paragraph(words) + f'<div class="pair"><div class="two">{"".join(shown)}</div></div>'


def _level(run: TrainRecord, name: str) -> float:
    """The last value of a column, NaN if it has none."""
    from genpol.reports.charts import known

    return float([float("nan"), *known(run.log, name)[1]][-1])
