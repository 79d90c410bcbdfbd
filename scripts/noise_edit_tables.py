"""Edits of a pipeline's initial noise (EXPO) and an actor that chooses it (DSRL), beside best-of-K.

    python -m scripts.noise_edit_tables             # runs what is missing, 10 minutes on one core
    python -m scripts.noise_edit_tables --report    # only the table of docs/RESULTS.md

With an ODE (`tiny-flow`) or DDIM at eta 0 (`tiny`) the initial noise x_T decides the image. With
any other sampler an edit of x_T is mostly forgotten on the way. A value V(x_T, prompt) of the
network of `diffusion/values` learns the reward of finished images from x_T alone. Then, with V
frozen and fresh noise of training prompts,

    edit       x_T + beta tanh(u(x_T, prompt)), scaled back to the norm of x_T, climbs V: the edit
               policy of `genpol/agents/edit.py` without entropy, as the best of it and the
               original is what counts
    actor      1.5 tanh(u(prompt)), scaled to the norm of a fresh x_T, climbs V: the actor of
               `genpol/agents/dsrl.py`, whose box is the same

The norm is kept because Gaussian noise in D dimensions has a norm of about sqrt(D), and denoisers
have seen no other. On the held-out prompts:

    one            one sample, the mean of all noises; those that are edited are the first 8
    noises         of 8 noises the one that V prefers, which costs no evaluation of the network
    edit B, actor  one sample from what the network makes of the same noise
    or edit B      the original and its edit, both finished; the reward chooses
    two edits B    the edits of two noises, both finished; the reward chooses
    best of 2      two samples; the reward chooses
    noises of 2    the two of 8 noises that V prefers, both finished; the reward chooses

A row for each finished (model, seed) and arm of docs/results/noise_edits.csv. Seeds of 1000 and
more are development seeds; beta and the length of training were chosen on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from diffusion.chain import Condition
from diffusion.evaluations import Evaluations
from diffusion.loading import load_pipeline
from diffusion.pipelines import ImagePolicy
from diffusion.prompts.sources import load_prompts
from diffusion.recommended import recommended
from diffusion.rewards.world import attributes, gold
from diffusion.scores import take
from diffusion.values.measures import rank_correlation
from diffusion.values.network import ValueNetwork
from diffusion.values.text import text_sizes
from scripts.results_table import Table, write_block
from scripts.training_runs import claimed

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "noise_edits.csv"
MODELS, SEEDS, BETAS, BOX = ("tiny-flow", "tiny"), (1000,), (0.1, 0.3, 1.0), 1.5
COLUMNS = (
    "model", "seed", "arm", "evaluations", "images", "gold", "gold_error", "reward", "over_one",
    "over_one_error", "rank", "chains", "cpu_seconds",
)  # fmt: skip


LABELS = {
    "one": "one sample",
    "noises": "the noise that V prefers of 8",
    "edit": "edit, beta {}",
    "actor": "actor",
    "best of 2": "the better of two samples",
    "noises of 2": "the better of the two noises that V prefers of 8",
    "or edit": "the better of a sample and its edit, beta {}",
    "two edit": "the better of two edits, beta {}",
}


@dataclass(frozen=True)
class Sizes:
    """How much is drawn and learnt: training prompts and images of each, held-out prompts and
    images of each, noises that V chooses from, and gradient steps of V and of a mover."""

    prompts: int = 160
    copies: int = 8
    held_out: int = 32
    held_copies: int = 16
    noises: int = 8
    value_steps: int = 120
    move_steps: int = 300


class Mover(nn.Module):
    """tanh of a small network of noise (B, C, h, w) and a prompt's mean embedding (B, E).

    Without `sees` the noise is not read, so that it is an actor.
    """

    def __init__(self, shape: tuple[int, int, int], text: int, sees: bool, width: int = 48) -> None:
        super().__init__()
        self.sees = sees
        self.place = nn.Parameter(0.3 * torch.randn(1, width, *shape[1:]))
        self.stem = nn.Conv2d(shape[0], width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.film = nn.Linear(text, 4 * width)
        self.out = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        parts = self.film(text)[..., None, None].chunk(4, 1)
        h = self.stem(x if self.sees else torch.zeros_like(x)) + self.place
        for layer, scale, shift in zip(self.layers, parts[::2], parts[1::2], strict=True):
            h = h + layer(F.silu(h * (1 + scale) + shift))
        return torch.tanh(self.out(F.silu(h)))


def with_norm_of(x: Tensor, like: Tensor) -> Tensor:
    """x (B, ...), each row scaled to the norm of the same row of `like`."""
    size = like.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp_min(1e-12)
    return x * size.view(-1, *[1] * (x.ndim - 1))


def edited(mover: Mover, x: Tensor, text: Tensor, beta: float) -> Tensor:
    """EXPO's edit of noise; an actor's choice where the mover sees no noise."""
    moved = x + beta * mover(x, text) if mover.sees else BOX * mover(x, text)
    return with_norm_of(moved, x)


class Study:
    """One model and seed: chains, the value, what moves noise, and the arms.

    Args:
        model: "tiny" or "tiny-flow".
        seed: of everything random.
        sizes: see `Sizes`.
    """

    def __init__(self, model: str, seed: int, sizes: Sizes) -> None:
        usual = recommended(model, "prdp")
        self.seed, self.sizes = seed, sizes
        self.policy = ImagePolicy(
            load_pipeline(model),
            guidance_scale=1.0,
            train="nothing",
            max_sequence_length=usual.get("max_sequence_length"),
        )
        self.process = self.policy.process(usual["num_inference_steps"], eta=0.0, sampler="ode")
        assert not self.process.stochastic.any()  # else x_T would not decide the image
        source = load_prompts("world")
        self.train = source.train(0, sizes.prompts, seed)
        self.held = source.held_out(sizes.held_out, seed)
        self.cond, self.held_cond = (self.policy.encode(p) for p in (self.train, self.held))

    def noise(self, count: int, purpose: int) -> Tensor:
        """x_T (count, C, h, w)."""
        generator = Generator().manual_seed(1_000_003 * self.seed + purpose)
        return torch.randn(count, *self.policy.latent_shape, generator=generator)

    @torch.no_grad()
    def finish(
        self, x: Tensor, prompts: list[str], cond: Condition, batch: int = 128
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Reward and gold score (N, copies) of what x_T (N copies, ...) become, prompt-major, and
        evaluations of the network for one image."""
        copies, done = len(x) // len(prompts), []
        owner = torch.arange(len(prompts)).repeat_interleave(copies)
        with Evaluations(self.policy.denoiser) as seen:
            for rows in torch.arange(len(x)).split(batch):
                now, own = x[rows], take(cond, owner[rows])
                for i in range(self.process.num_steps):
                    step = torch.full((len(now),), i)
                    out = self.policy.predict(now, self.process.timesteps_at(step), own)
                    now = self.process.mean(out, now, step)
                done.append(now)
        images, texts = self.policy.decode(torch.cat(done)), [prompts[i] for i in owner.tolist()]
        scores = [judge(images, texts).view(-1, copies).numpy() for judge in (attributes, gold)]
        return scores[0], scores[1], seen.count / len(x)

    def learn_value(self) -> None:
        """V from chains of the training prompts, by regression on the reward."""
        sizes, cond = self.sizes, self.cond
        x = self.noise(sizes.prompts * sizes.copies, 1)
        reward = torch.from_numpy(self.finish(x, self.train, cond)[0]).flatten()
        target = (reward - reward.mean()) / reward.std().clamp_min(1e-6)
        owner = torch.arange(sizes.prompts).repeat_interleave(sizes.copies)
        torch.manual_seed(self.seed)
        self.value = ValueNetwork(self.policy.latent_shape, text_sizes(cond), width=32, blocks=2)
        generator = Generator().manual_seed(self.seed)

        def loss() -> Tensor:
            rows = torch.randint(len(x), (96,), generator=generator)
            jitter = 0.1 * torch.randn(96, *x.shape[1:], generator=generator)
            found = self.values(x[rows] + jitter, cond, owner[rows])
            return (found - target[rows]).square().mean()

        climb(self.value, loss, sizes.value_steps, 2e-3, decay=0.1)
        self.value.eval().requires_grad_(False)

    def values(self, x: Tensor, cond: Condition, owner: Tensor) -> Tensor:
        """V (B,) of noise, in standard deviations of the reward."""
        names, rows = owner.unique(return_inverse=True)
        text = self.value.text(take(cond, names))
        return self.value(x, torch.ones(len(x)), text[rows])

    def learn_mover(self, beta: float | None) -> Mover:
        """An edit bounded by beta, or the actor."""
        generator, text = Generator().manual_seed(self.seed), mean_text(self.cond)
        torch.manual_seed(self.seed)
        mover = Mover(self.policy.latent_shape, text.shape[1], sees=beta is not None)

        def loss() -> Tensor:
            owner = torch.randint(self.sizes.prompts, (64,), generator=generator)
            x = torch.randn(64, *self.policy.latent_shape, generator=generator)
            return -self.values(edited(mover, x, text[owner], beta or 0), self.cond, owner).mean()

        climb(mover, loss, self.sizes.move_steps, 2e-3)
        return mover.eval().requires_grad_(False)

    def rows(self) -> list[dict[str, Any]]:
        """What every arm came to, see the top of the file."""
        began, n, sizes = process_time(), self.sizes.held_out, self.sizes
        self.learn_value()
        x = self.noise(n * sizes.held_copies, 2)
        owner = torch.arange(n).repeat_interleave(sizes.held_copies)
        reward, judged, cost = self.finish(x, self.held, self.held_cond)
        with torch.no_grad():
            value = self.values(x, self.held_cond, owner).view(n, -1)
        k = sizes.noises
        some = x.view(n, -1, *x.shape[1:])[:, :k].flatten(0, 1)  # edited: k noises of each prompt
        text = mean_text(self.held_cond).repeat_interleave(k, 0)
        tens = {"one": (judged, reward)}  # arm -> gold and reward, each (N, images)
        by_value = groups(value.numpy(), k).argsort(2)[..., ::-1]
        tens["noises"] = pick(by_value[..., :1], k, judged, reward)
        twenties = {"best of 2": best_of(judged, reward, 2)}
        two = pick(by_value[..., :2], k, judged, reward)
        twenties["noises of 2"] = best_of(*two, 2)
        for beta in (*BETAS, None):
            moved = edited(self.learn_mover(beta), some, text, beta or 0)
            new_reward, new_gold, _ = self.finish(moved, self.held, self.held_cond)
            name = "actor" if beta is None else f"edit {beta:g}"
            tens[name] = new_gold, new_reward
            if beta is None:
                continue
            pairs = [
                np.stack([old[:, :k], new], 2).reshape(n, -1)
                for old, new in ((judged, new_gold), (reward, new_reward))
            ]
            twenties[f"or {name}"] = best_of(*pairs, 2)
            twenties[f"two {name}"] = best_of(new_gold, new_reward, 2)
        rank = rank_correlation(value, torch.from_numpy(reward))
        about = {"rank": rank, "chains": sizes.prompts * sizes.copies}
        about["cpu_seconds"] = round(process_time() - began)
        return [
            row(arm, times * cost, scores, judged) | about
            for times, arms in ((1, tens), (2, twenties))
            for arm, scores in arms.items()
        ]


def climb(
    network: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float, decay: float = 0.0
) -> None:
    """Minimise `loss` by AdamW, with a cosine of the learning rate."""
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def mean_text(cond: Condition) -> Tensor:
    """(N, E) what encoders say of prompts: the mean of the token states."""
    return cond["text"].float().mean(1)


def groups(scores: np.ndarray, k: int) -> np.ndarray:
    """(N, images) -> (N, G, k), the last ones left out that fill no group."""
    return scores[:, : scores.shape[1] // k * k].reshape(len(scores), -1, k)


def pick(places: np.ndarray, k: int, *scores: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of groups of k the images at `places` (N, G, m): (N, G m) of each kind of scores."""
    return tuple(np.take_along_axis(groups(s, k), places, 2).reshape(len(s), -1) for s in scores)


def best_of(judged: np.ndarray, reward: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Gold and reward (N, G) of the images that the reward chooses from groups of k."""
    return pick(groups(reward, k).argmax(2)[..., None], k, judged, reward)


def row(
    arm: str, evaluations: float, scores: tuple[np.ndarray, ...], one: np.ndarray
) -> dict[str, Any]:
    """Means over prompts, with the standard error over prompts."""
    found, reward = scores[0].mean(1), scores[1].mean()
    over = found - one.mean(1)

    def error(x: np.ndarray) -> float:
        return float(x.std(ddof=1) / len(x) ** 0.5)

    return {
        "arm": arm, "evaluations": float(evaluations), "images": scores[0].size,
        "gold": float(found.mean()), "gold_error": error(found), "reward": float(reward),
        "over_one": float(over.mean()), "over_one_error": error(over),
    }  # fmt: skip


def missing(rows: list[dict[str, str]]) -> list[str]:
    """Runs without rows."""
    done = {(r["model"], r["seed"]) for r in rows}
    return [f"{m} with seed {s}" for m in MODELS for s in SEEDS if (m, str(s)) not in done]


def block(rows: list[dict[str, str]]) -> str:
    """The table of docs/RESULTS.md."""
    models = [m for m in MODELS if any(r["model"] == m for r in rows)]
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    arms.sort(key=lambda arm: float(next(r for r in rows if r["arm"] == arm)["evaluations"]))
    by: Mapping[tuple[str, str], dict[str, str]] = {(r["model"], r["arm"]): r for r in rows}
    ranks = ", ".join(f"{float(by[m, 'one']['rank']):.2f} on `{m}`" for m in models)
    chains = next(iter(by.values()))["chains"]
    lines = [
        f"V was learnt from {chains} chains. Its rank correlation with the reward, within held-out "
        f"prompts, is {ranks}. Gold score in %, ± standard error over prompts, one seed; "
        "evaluations of the network are counted.",
        "",
        "| | evaluations | " + " | ".join(f"`{m}`" for m in models) + " |",
        "|---|---|" + "---|" * len(models),
    ]
    for arm in arms:
        cells = [
            f"{100 * float(r['gold']):.1f} ± {100 * float(r['gold_error']):.1f}"
            if (r := by.get((m, arm)))
            else ""
            for m in models
        ]
        spent = next(float(r["evaluations"]) for (_, a), r in by.items() if a == arm)
        name, _, beta = arm.rpartition(" ") if "edit" in arm else (arm, "", "")
        lines.append(f"| {LABELS[name].format(beta)} | {spent:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=[*MODELS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[*SEEDS])
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    table = Table(RESULTS, COLUMNS)
    for model in [] if args.report else args.models:
        for seed in args.seeds:
            with claimed(Path("runs") / "noise_edits" / f"{model}-{seed}") as free:
                if free and not table.has(model=model, seed=seed):
                    found = Study(model, seed, Sizes()).rows()
                    table.add(*({"model": model, "seed": seed} | r for r in found))
    rows = [r for r in table.rows() if int(r["seed"]) in SEEDS]
    if absent := missing(rows):
        print(f"rows are missing: {', '.join(absent)}; run without --report")
    if rows:
        write_block("noise-edits", block(rows))


if __name__ == "__main__":
    main()
