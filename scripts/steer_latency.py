"""What a steered decision costs, against one base sample: docs/results/steering_latency.csv.

    python -m scripts.steer_latency

For one robot (B = 1) on the CPU, from observation to executed actions, base and steered in turn in
one process, so that what else the machine does hits both. Ratio of medians, and of best tenths.
With the demo's value function and untrained policies: cost depends on shapes, not on weights.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from genpol.policies.policy import ChunkPolicy
from genpol.steering.paired_episodes import stack
from genpol.steering.select import argmax, softmax
from genpol.steering.session import Arms, latencies
from offline.critics.value import ValueFunction
from offline.threads import use_threads
from offline.types import Obs
from robots.envs.make import layout_seed, make_env

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "steering_latency.csv"
VALUE = Path(__file__).parents[1] / "genpol" / "assets" / "steering" / "value"
ENV = "metaworld/pick-place-v3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    value, env = ValueFunction.load(VALUE), make_env(ENV)
    observations = [stack([env.reset(seed=layout_seed("latency", 0, i))[0]]) for i in range(20)]
    rows = []
    for threads in options.threads:
        use_threads(threads)
        for kind in ("diffusion", "flow", "gaussian"):
            for candidates in (1, 8, 32):
                policy = ChunkPolicy(kind, env.action_spec.with_chunk(4), value.obs_shapes)
                for name, rule in (("softmax", softmax(1.0)), ("argmax", argmax())):
                    arms = Arms(policy, value, rule, num_candidates=candidates)
                    rows.append(
                        measure(arms, observations, options.repeats)
                        | {
                            "policy": kind,
                            "candidates": candidates,
                            "select": name,
                            "threads": threads,
                        }
                    )
                    print(rows[-1], flush=True)
    with open(options.output, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure(arms: Arms, observations: list[Obs], repeats: int) -> dict[str, float]:
    """Milliseconds and ratios of one cell."""
    seconds = {
        k: 1e3 * np.array(v) for k, v in latencies(arms, observations, repeats=repeats).items()
    }
    row: dict[str, float] = {}
    for label, q in (("p10", 10), ("p50", 50), ("p95", 95)):
        base, steered = (float(np.percentile(seconds[name], q)) for name in ("base", "steered"))
        row |= {f"base_{label}_ms": round(base, 3), f"steered_{label}_ms": round(steered, 3)}
        if label != "p95":
            row[f"ratio_{label}"] = round(steered / base, 2)
    return row


if __name__ == "__main__":
    main()
