"""Steered pictures: gold score against network evaluations, and frontiers of composed rewards.

    python -m scripts.image_steering_tables images            # docs/results/image_steering.csv
    python -m scripts.image_steering_tables composition       # docs/results/image_composition.csv
    python -m scripts.image_steering_tables --report          # RESULTS.md and the two pictures
    python -m scripts.image_steering_tables images --seeds 1000 --images 64    # development seeds

A row is written when its arm has been drawn, and a row that is there is skipped; a value whose
training was stopped goes on. Several processes may run the same command at once: each takes seeds
that no other has begun. Seeds of 1000 and more write to files of their own; no figure uses them.

Images, fixed before the first run of a test seed: values of `attributes` trained by `genpol value`
with its defaults on seeds 0, 1 and 2; 256 held-out prompts, one picture each; 10 denoising steps,
no guidance but in the arms that have it. The best of K is chosen by the reward that the value
learnt, and the gold checker judges all arms. "By the predicted reward" prunes by the reward of the
picture that a chain is heading for, decoded at each selection: no value is trained, and the reward
is called for every chain.

Composition, on `tiny`: rewards `attributes` and `jpeg_compressibility`, which pull apart. The
weight of `attributes` is 1, in standard deviations of each reward (as the values' documents say).
Steering takes the weights when pictures are drawn; fine-tuning is PRDP with its recommended
settings on the reward with the same weights. Budget: each value learns from 1,280 images (its
default), two of them serve all weights, and each fine-tuned weight takes 20 epochs of 64 images,
which are 1,280, too. A picture then costs 42 evaluations steered and 10 fine-tuned.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genpol.steering.picture_values import PictureValues
from offline.threads import use_threads
from scripts.image_steering_runs import (
    Arm,
    Drawn,
    Floats,
    fine_tuned,
    finished,
    held_out,
    predicted,
    steer,
    trained_value,
)
from scripts.results_table import Table
from scripts.training_runs import claimed

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SEEDS, FIRST_DEVELOPMENT_SEED, IMAGES = (0, 1, 2), 1000, 256
MODELS = ("tiny", "tiny-flow")
REWARD, GOLD, SIZE = "attributes", "gold", "jpeg_compressibility"
BEST_OF, WIDTH = (1, 2, 4, 8), 8
HALF = (0.7, 0.5, 0.2)  # 8 x 3 + 4 x 2 + 2 x 3 + 1 x 2 = 40 of 80 evaluations
STEERED = {
    "prune 4 at .7 .4": Arm(4, (0.7, 0.4)),
    "prune 8 at .7 .5 .2": Arm(8, HALF),
    "prune 8 at .7 .4 .2": Arm(8, (0.7, 0.4, 0.2)),
    "prune 8 at .5 .3 .1": Arm(8, (0.5, 0.3, 0.1)),
    "prune 16 at .8 .6 .3": Arm(16, (0.8, 0.6, 0.3)),
    "8 finished, by the value": Arm(8, (0.0,)),
    "resample 8": Arm(8, (0.7, 0.4, 0.2), temperature=0.3, sampler="cps"),
}
PREDICTED = {f"{name}, by the predicted reward": STEERED[name] for name in (
    "prune 8 at .7 .5 .2", "prune 16 at .8 .6 .3",
)}  # fmt: skip
GUIDED = {
    "guidance 3, 20 steps": (Arm(guidance=3.0, steps=20), 1),
    "guidance 3, best of 2": (Arm(guidance=3.0), 2),
    "guidance 5, 20 steps": (Arm(guidance=5.0, steps=20), 1),
}
NOISY = "one sample by cps"  # what `resample 8` starts from in flow models
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)
EPOCHS = 20
COLUMNS = (
    "model", "arm", "seed", "images", "evaluations", "reward_calls", "cpu_seconds",
    "reward", "gold", "gold_se", "gold_gain", "gold_gain_se", "over_best_of_8", "over_best_of_8_se",
)  # fmt: skip
COMPOSED = (
    "arm", "weight", "seed", "images", "evaluations", "trained_on", "attributes", "gold",
    "jpeg_compressibility",
)  # fmt: skip


def tables(seed: int) -> tuple[Table, Table]:
    """Where the rows of a seed belong."""
    end = "_tuning" if seed >= FIRST_DEVELOPMENT_SEED else ""
    return (
        Table(RESULTS / f"image_steering{end}.csv", COLUMNS),
        Table(RESULTS / f"image_composition{end}.csv", COMPOSED),
    )


def row(model: str, arm: str, seed: int, found: Drawn, one: Floats, best: Floats) -> dict[str, Any]:
    gold, n = found.scores[GOLD], len(found.scores[GOLD])

    def mean(values: Floats) -> tuple[float, float]:
        return float(values.mean()), float(values.std(ddof=1) / n**0.5)

    (level, se), (gain, gain_se), (over, over_se) = mean(gold), mean(gold - one), mean(gold - best)
    return {
        "model": model, "arm": arm, "seed": seed, "images": n, "evaluations": found.evaluations,
        "reward_calls": found.reward_calls, "cpu_seconds": found.cpu_seconds,
        "reward": float(found.scores[REWARD].mean()), "gold": level, "gold_se": se,
        "gold_gain": gain, "gold_gain_se": gain_se, "over_best_of_8": over,
        "over_best_of_8_se": over_se,
    }  # fmt: skip


def images(
    model: str, seed: int, work: Path, count: int = IMAGES, options: Mapping[str, Any] | None = None
) -> None:
    """All arms of a model and a seed whose rows are missing."""
    table, _ = tables(seed)
    names = [*(best_name(k) for k in BEST_OF), *GUIDED, *arms_of(model)]
    if all(table.has(model=model, arm=name, seed=seed) for name in names):
        return
    prompts, judges = held_out(count, seed), (REWARD, GOLD)
    plain = finished(model, Arm(), prompts, seed, judges, BEST_OF, WIDTH)
    one, best = plain[1].scores[GOLD], plain[max(BEST_OF)].scores[GOLD]

    def add(name: str, found: Drawn) -> None:
        if not table.has(model=model, arm=name, seed=seed):
            written = row(model, name, seed, found, one, best)
            table.add(written)
            print(*written.values(), flush=True)

    for k, found in plain.items():
        add(best_name(k), found)
    for name, (arm, k) in GUIDED.items():
        if not table.has(model=model, arm=name, seed=seed):
            add(name, finished(model, arm, prompts, seed, judges, (k,), WIDTH)[k])
    values = PictureValues([trained_value(model, REWARD, seed, work, options or {})])
    for name, arm in arms_of(model).items():
        if table.has(model=model, arm=name, seed=seed):
            continue
        if name == NOISY:
            add(name, finished(model, arm, prompts, seed, judges, (1,), WIDTH)[1])
        elif name in PREDICTED:
            add(name, steer(model, arm, predicted(model, REWARD), prompts, seed, judges))
        else:
            add(name, steer(model, arm, values, prompts, seed, judges))


def arms_of(model: str) -> dict[str, Arm]:
    """The steered arms. Flow models resample by cps, and one sample by cps stands beside it."""
    return STEERED | PREDICTED | ({NOISY: Arm(sampler="cps")} if model == "tiny-flow" else {})


def best_name(k: int) -> str:
    return f"best of {k}" if k > 1 else "one sample"


def composition(
    seed: int,
    work: Path,
    count: int = IMAGES,
    options: Mapping[str, Any] | None = None,
    epochs: int = EPOCHS,
) -> None:
    """Steering by every weight, and fine-tuning by the same."""
    _, table = tables(seed)
    prompts, judges = held_out(count, seed), (REWARD, GOLD, SIZE)
    values = [trained_value("tiny", name, seed, work, options or {}) for name in (REWARD, SIZE)]
    seen = sum(int(value.meta.get("images", 0)) for value in values)

    def add(arm: str, weight: float, found: Drawn, trained_on: int) -> None:
        written = {"arm": arm, "weight": f"{weight:g}", "seed": seed, "images": len(prompts)}
        written |= {"evaluations": found.evaluations, "trained_on": trained_on}
        written |= {name: float(found.scores[name].mean()) for name in judges}
        table.add(written)
        print(*written.values(), flush=True)

    if not table.has(arm="one sample", seed=seed):
        plain = finished("tiny", Arm(), prompts, seed, judges, (1,), WIDTH)[1]
        add("one sample", 0.0, plain, 0)
    for weight in WEIGHTS:
        if not table.has(arm="steered", weight=f"{weight:g}", seed=seed):
            both = PictureValues(values, [1.0, weight])
            arm = STEERED["prune 8 at .7 .4 .2"]
            add("steered", weight, steer("tiny", arm, both, prompts, seed, judges), seen)
        if not table.has(arm="fine-tuned", weight=f"{weight:g}", seed=seed):
            reward = expression([1.0, weight], [value.about.std for value in values])
            found, trained_on = fine_tuned("tiny", reward, seed, epochs, prompts, judges)
            add("fine-tuned", weight, found, trained_on)


def expression(weights: Sequence[float], stds: Sequence[float]) -> str:
    """The composed reward in the words of --reward, without those of weight 0."""
    parts = [
        f"{weight / std:.6g}*{name}"
        for weight, std, name in zip(weights, stds, (REWARD, SIZE), strict=True)
        if weight
    ]
    return "+".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("table", nargs="?", choices=["images", "composition"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--images", type=int, default=IMAGES, help="for development seeds only")
    parser.add_argument("--work", type=Path, default=Path("runs/image_steering"))
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    args = parser.parse_args()
    if args.images != IMAGES and min(args.seeds) < FIRST_DEVELOPMENT_SEED:
        parser.error(f"--images other than {IMAGES} is for seeds from {FIRST_DEVELOPMENT_SEED} on")
    use_threads(1)
    for seed in args.seeds if args.table else ():
        for model in args.models if args.table == "images" else ("tiny",):
            with claimed(args.work / f"{args.table}-{model}-{seed}") as mine:
                if mine and args.table == "images":
                    images(model, seed, args.work, args.images)
                elif mine:
                    composition(seed, args.work, args.images)
    if args.report:
        from scripts.image_steering_report import write

        write()


if __name__ == "__main__":
    main()
