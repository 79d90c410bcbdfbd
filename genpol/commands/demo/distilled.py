"""The demo's part that distils value steering into the weights of the shipped robot policy."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from genpol.commands.train.options import Train
    from genpol.reports.page import Panel

SETTINGS: dict[str, Any] = {  # shorter than the 2,000 updates of the table, for one core
    "agent": "prdp",
    "steps": 0,
    "offline_updates": 160,
    "action_chunk": 4,
    "log_every": 20,
    "eval_every": 1_000_000,  # the episodes of this page come after it
    "eval_episodes": 1,
    "videos": 0,
    "device": "cpu",
    "wandb": "offline",
}
TITLES = {
    "base": "one sample",
    "steered": "steered, best of {k}",
    "distilled": "distilled, one sample",
}
TIMED = 20  # first observations that decisions are timed on


@dataclass(frozen=True)
class Found:
    """What came of it.

    Attributes:
        success: arm -> (N,) whether each episode succeeded; the same initial states in every arm.
        milliseconds: median time of a decision, of one sample and of steering.
        kl: KL of the distilled policy from the one before, in nats per chunk.
        updates: of the policy.
    """

    success: dict[str, np.ndarray]
    milliseconds: dict[str, float]
    kl: float
    updates: int


def settings(
    folder: Path, policy: Path, value: Path, data: Path, seed: int, threads: int, beta: float
) -> Train:
    """The run that distils, in `folder`."""
    from genpol.commands.train.options import Train

    return Train.recommended(
        **SETTINGS,
        base=str(policy),
        value=str(value),
        data=(str(data),),
        beta=beta,
        seed=seed,
        threads=threads,
        output=folder,
    )


def panel(folder: Path, steered: Path, config: Train, candidates: int) -> Panel:
    """Distil, play the episodes that were steered before, and say what came of it.

    Args:
        folder: of the run.
        steered: run folder of `genpol steer`, whose episodes are played again.
        config: of `settings`.
        candidates: K of steering.

    Raises:
        Interrupted: a signal stopped it.
    """
    from genpol.commands.train.command import check, train
    from genpol.training.session import Clock

    check(config)
    print(
        f"distilling steering into the policy: {config.offline_updates} updates without a "
        "simulator, less than a minute"
    )
    train(config, {}, Clock())
    return panel_of(play(folder, steered, config, candidates), config, candidates)


def play(folder: Path, steered: Path, config: Train, candidates: int) -> Found:
    """Episodes of the distilled policy on the initial states of `steered`."""
    from functools import partial

    import torch

    from genpol.policies.policy import load_policy
    from genpol.reports.charts import known, read_log
    from genpol.steering.paired_episodes import run_episodes
    from genpol.steering.select import softmax
    from genpol.steering.session import Arms, first_observations, latencies
    from offline.critics.value import ValueFunction
    from offline.threads import in_threads
    from robots.envs.make import make_env

    seeds, success = read_episodes(steered / "episodes.csv")
    policy, value = load_policy(folder), ValueFunction.load(str(config.value))
    make = partial(make_env, str(policy.env))
    with in_threads(config.threads), torch.no_grad():
        rollouts = run_episodes(
            policy, make, seeds, generator_seed=config.seed, chunk=value.spec.chunk
        )
        arms = Arms(policy, value, softmax(config.beta), candidates)
        seconds = latencies(arms, first_observations(make, seeds[:TIMED]))
    log = read_log(folder / "metrics.csv")
    return Found(
        {**success, "distilled": rollouts.success},
        {arm: 1e3 * float(np.median(found)) for arm, found in seconds.items()},
        float(known(log, "kl/forward")[1][-1]),
        config.offline_updates,
    )


def read_episodes(path: Path) -> tuple[list[int], dict[str, np.ndarray]]:
    """Initial states, and the successes of base and steered on them, of an `episodes.csv`."""
    success: dict[str, dict[int, bool]] = {"base": {}, "steered": {}}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["arm"] in success:
                success[row["arm"]][int(row["initial_state"])] = row["success"] == "1"
    seeds = list(success["base"])
    return seeds, {arm: np.array([won[s] for s in seeds]) for arm, won in success.items()}


def panel_of(found: Found, config: Train, candidates: int) -> Panel:
    """The panel."""
    from genpol.reports.page import Panel, paragraph, table
    from genpol.reports.stats import wilson

    rows = []
    for arm, title in TITLES.items():
        won = found.success[arm]
        low, high = wilson(int(won.sum()), len(won))
        one = "steered" if arm == "steered" else "base"  # the distilled network is the base's
        rows.append(
            [
                title.format(k=candidates),
                f"{100 * won.mean():.0f} % [{100 * low:.0f}, {100 * high:.0f}]",
                f"{found.milliseconds[one]:.1f} ms",
            ]
        )
    return Panel(
        "Robot policy: steering distilled into its weights",
        "\n".join(
            [
                paragraph(_story(found, config, candidates)),
                table(("", "success", "time of a decision"), rows),
                paragraph(
                    f"{len(found.success['base'])} episodes, the same initial states in every "
                    "row, one seed of distilling. In brackets: 95 % intervals (Wilson). The first "
                    "two rows are those of the panels above. Times are medians, measured in turn "
                    "with the distilled policy, which has the size of the one before.",
                    "note",
                ),
            ]
        ),
    )


def _story(found: Found, config: Train, candidates: int) -> str:
    return (
        f"Steering draws {candidates} action chunks and asks the value function at every decision. "
        "The policy can learn to draw such chunks itself. For each of the observations that "
        f"demonstrations left, {config.group_size} chunks are drawn and valued, and PRDP (arXiv "
        "2402.08714), the objective that fine-tunes image pipelines, changes the policy's weights. "
        f"Its beta of {config.beta:g} is the temperature of steering above. No simulator was used. "
        f"After {found.updates} updates the policy is {found.kl:.2f} nats per chunk away from what "
        "it was. One sample then needs neither candidates nor a value function."
    )
