"""Does the value explode even if the model is the simulator? docs/results/edge_of_reach.csv.

Short rollouts from a dataset's states end in states that no rollout begins in. Their values are
bootstrapped from and never trained, so they may grow without bound however good the model is (Sims
et al. 2024, arXiv 2402.12527). Here the model is the simulator, so nothing else is to blame. Plain
SAC, the same with ten heads, RAVL (the minimum over ten diverse heads), and plain SAC with this
kit's usual LayerNorm, learn offline from alike batches; return and mean value as they learn tell
who collapses. The data are few, so that much is out of reach: on ten thousand steps of random
actions, at seed 1000, nothing had grown beyond what it should within ten thousand updates. The
weight 10 of the diversity was chosen at that seed, too; 100 learnt slowly there.

    python -m scripts.edge_of_reach                    # several sittings and processes
    python -m scripts.edge_of_reach --report           # the table of docs/RESULTS.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.results_table import Table
from scripts.training_runs import claimed, table_command

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "edge_of_reach.csv"
METRICS = ("eval/return", "time/cpu_seconds", "critic/q_data", "critic/q_std", "critic/target")
KEY = ("env", "arm", "seed")
COLUMNS = (*KEY, "step", *METRICS, "flags")
ENV, SEEDS = "Hopper-v5", 3
DATA_STEPS = 500  # of uniformly random actions
COMMON: dict[str, Any] = {
    "agent": "sac",
    "env": ENV,
    "action_chunk": 1,
    "reward": "dataset",
    "world_model": "simulator",
    "rollout_lengths": (5, 5),
    "rollouts_per_step": 2,
    "model_every": 1_000,
    "imagined_capacity": 100_000,  # every training; as when the rows were measured
    "imagined_fraction": 0.95,
    "offline_fraction": 0.05,
    "offline_updates": 6_000,
    "target_rate": 0.02,
    "layer_norm": False,
    "pretrain_steps": 0,
    "steps": 0,
    "hidden": (256, 256),
    "eval_every": 500,
    "eval_episodes": 10,
    "checkpoint_every": 2_000,
}
ARMS: dict[str, dict[str, Any]] = {
    "two heads": {"value_ensemble": 2, "subset": 2},
    "ten heads": {"value_ensemble": 10, "subset": 10},
    "RAVL, weight 1": {"value_ensemble": 10, "subset": 10, "value_diversity": 1.0},
    "RAVL, weight 10": {"value_ensemble": 10, "subset": 10, "value_diversity": 10.0},
    "two heads, LayerNorm": {"value_ensemble": 2, "subset": 2, "layer_norm": True},
}


def random_episodes(seed: int) -> Iterator[Any]:
    """Episodes of uniformly random actions, `DATA_STEPS` steps in all."""
    from offline.data.episodes import Episode
    from robots.envs.make import layout_seed, make_env

    env, rng, steps = make_env(ENV), np.random.default_rng(seed), 0
    spec = env.action_spec
    while steps < DATA_STEPS:
        obs, _ = env.reset(seed=layout_seed("data", seed, steps))
        seen, actions, rewards = [obs["state"]], [], []
        over = False
        while not over:
            actions.append(rng.uniform(spec.low, spec.high).astype(np.float32))
            obs, reward, terminated, truncated, _ = env.step(actions[-1])
            seen.append(obs["state"])
            rewards.append(reward)
            over = terminated or truncated
        steps += len(actions)
        yield Episode(
            {"state": np.stack(seen).astype(np.float32)},
            np.stack(actions),
            np.asarray(rewards, np.float32),
            terminated=bool(terminated),
        )


def dataset(seed: int, work: Path) -> Path:
    """The file of a seed, made if it is not there."""
    from robots.datasets.robomimic_hdf5 import write_hdf5
    from robots.envs.make import make_env

    path = work / f"random-{seed}.hdf5"
    with claimed(path, wait=True):
        if not path.exists():
            spec = make_env(ENV).action_spec
            write_hdf5(path, random_episodes(seed), spec=spec, env=ENV, valid_fraction=0.0)
    return path


def planned(work: Path) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Every run, whole comparisons early."""
    for seed in range(SEEDS):
        for arm, options in ARMS.items():
            data = {"data": str(dataset(seed, work))}
            yield {"env": ENV, "arm": arm, "seed": seed}, COMMON | options | data


def report(rows: list[dict[str, str]]) -> str:
    """Markdown: the mean value farthest from 0, of either sign, and the return in the end."""
    lines = [
        f"{ENV}, offline on {DATA_STEPS:,} steps of random actions, the simulator as model,",
        "rollouts of five steps (`python -m scripts.edge_of_reach`); every seed on its own.",
        "",
        "| critic | mean value farthest from 0 | return, last five evaluations | best evaluation |",
        "|---|---|---|---|",
    ]
    for arm in dict.fromkeys(r["arm"] for r in rows):
        values, ends, best = [], [], []
        for seed in sorted({r["seed"] for r in rows if r["arm"] == arm}):
            run = [r for r in rows if r["arm"] == arm and r["seed"] == seed]
            run.sort(key=lambda r: int(r["step"]))
            known = [float(r["critic/q_data"]) for r in run]
            values.append(max((value for value in known if np.isfinite(value)), key=abs))
            returns = [float(r["eval/return"]) for r in run]
            ends.append(np.mean(returns[-5:]))
            best.append(max(returns))
        cells = [" / ".join(f"{x:,.0f}" for x in numbers) for numbers in (values, ends, best)]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    table = Table(RESULTS, COLUMNS)
    table_command(__doc__, table, planned, report, metrics=METRICS, marker="edge-of-reach")


if __name__ == "__main__":
    main()
