"""The page of steered pictures: what steering gained, beside other uses of the same evaluations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from diffusion.steered_chain import SteeredChains
from genpol.reports.grids import to_pil
from genpol.reports.intervals import decimals, difference, gained, with_interval
from genpol.reports.page import Panel, Strip, code, paragraph, strips, table
from genpol.steering.picture_arms import ONE, STEERED, Arm
from genpol.steering.picture_chains import Selection

TITLE = "Pictures steered by a value"
SHOWN = 8  # prompts whose pictures are shown
SIDE = 256  # pixels of a picture on the page, at most


@dataclass(frozen=True)
class Steering:
    """What a page says beside the arms.

    prompts: N.
    how: the selection.
    chains: of the steered pictures.
    unit: see `PictureValues.unit`.
    candidates: K.
    reward: the expression that the value learnt and that chooses the best of k.
    command: that drew the pictures.
    """

    prompts: Sequence[str]
    how: Selection
    chains: SteeredChains
    unit: float
    candidates: int
    reward: str
    command: str


def steering_panels(arms: Sequence[Arm], about: Steering) -> list[Panel]:
    """All panels of the page."""
    named = {arm.name: arm for arm in arms}
    return [
        Panel("Result", result(named, about)),
        Panel("What the same network evaluations buy", beside(arms, about)),
        Panel("The same prompts side by side", gallery(arms, about)),
        Panel("How chains were chosen", stages(about)),
        Panel("Command", code(about.command)),
    ]


def equal_arms(arms: Sequence[Arm]) -> list[Arm]:
    """Those that spent no more than steering did, one evaluation in a thousand aside."""
    budget = next(arm.evaluations for arm in arms if arm.name == STEERED)
    return [arm for arm in arms if arm.evaluations <= 1.001 * budget]


def result(named: dict[str, Arm], about: Steering) -> str:
    """What steering gained over one sample, and over the best of as many finished pictures."""
    steered, one = named[STEERED], named[ONE]
    found = []
    for name in steered.scores:
        old, new = one.scores[name], steered.scores[name]
        digits, (_, low, high) = decimals(old, new), difference(old, new)
        label = (
            f"The reward ({about.reward})" if name == "reward" else f"{name}, which only judges,"
        )
        words = (
            f"{label} is {new.mean():.{digits}f} with steering and {old.mean():.{digits}f} for one "
            f"sample: {gained(old, new, digits)}."
        )
        if best := best_of_same_cost(named):
            other = best.scores[name]
            words += (
                f" The {best.name} by the true reward, at {best.evaluations:g} evaluations, has "
                f"{other.mean():.{digits}f}; the difference to it is {gained(other, new, digits)}."
            )
        kind = "good" if low > 0 else "part" if high < 0 else ""
        found.append(paragraph(words, kind))
    note = (
        f"{len(about.prompts)} pictures, one seed. Steering spent {steered.evaluations:g} network "
        f"evaluations and {steered.reward_calls} reward calls a picture; one sample takes "
        f"{one.evaluations:g} evaluations. "
        "In brackets: 95 % bootstrap intervals over prompts, of differences in pairs."
    )
    return "\n".join([*found, paragraph(note, "note")])


def best_of_same_cost(named: dict[str, Arm]) -> Arm | None:
    """The largest best of k without guidance that spent no more than steering."""
    found = [a for a in equal_arms(list(named.values())) if a.name.startswith("best of ")]
    return max(found, key=lambda arm: arm.evaluations) if found else None


def beside(arms: Sequence[Arm], about: Steering) -> str:
    """Every arm with what it spent and what it scored."""
    names = list(arms[0].scores)
    digits = {n: decimals(*(arm.scores[n] for arm in arms)) for n in names}
    steered = next(arm for arm in arms if arm.name == STEERED)
    equal = [arm.name for arm in equal_arms(arms)]
    last, rows = names[-1], []
    for arm in arms:
        more = (
            "" if arm is steered else gained(arm.scores[last], steered.scores[last], digits[last])
        )
        name = arm.name if arm.name in equal else f"{arm.name} (dearer)"
        spent = [f"{arm.evaluations:g}", str(arm.reward_calls), f"{arm.seconds:.3g}"]
        scores = [with_interval(arm.scores[n], digits[n]) for n in names]
        rows.append([name, *spent, *scores, more])
    head = ["", "evaluations", "reward calls", "seconds", *names, f"steering's {last} is more by"]
    note = (
        "Evaluations, reward calls and seconds are of one picture. Evaluations are images that the "
        "network sees, counted at the network; with guidance it sees each twice a step. Asking the "
        "value is in the seconds and not in the evaluations. The best of k is chosen by the true "
        "reward among finished pictures, the other scores only judge. Guidance spends the "
        "evaluations in more steps, or in several pictures of which the reward chooses one."
    )
    return table(head, rows) + paragraph(note, "note")


def gallery(arms: Sequence[Arm], about: Steering) -> str:
    """The first prompts: one sample, steered, and what costs as much as steering."""
    last = list(arms[0].scores)[-1]
    equal = [arm for arm in equal_arms(arms) if arm.name not in (ONE, STEERED)]
    columns = [arm for arm in arms if arm.name in (ONE, STEERED)] + equal[:4]
    share = all(
        0 <= float(arm.scores[last].min()) and float(arm.scores[last].max()) <= 1 for arm in columns
    )
    items = [
        Strip(
            prompt,
            [small_png(arm.images[i]) for arm in columns],
            [mark_of(float(arm.scores[last][i]), share) for arm in columns],
        )
        for i, prompt in enumerate(about.prompts[:SHOWN])
    ]
    words = (
        "These are the first prompts; they were not chosen. Under each picture: "
        f"{'reward' if last == 'reward' else last}."
    )
    return paragraph(words) + "\n" + strips(items, [arm.name for arm in columns])


def stages(about: Steering) -> str:
    """Chains and their values at every selection."""
    chains, rows = about.chains, []
    width = about.candidates
    for i, (stage, name) in enumerate(zip(about.how.stages, about.how.names, strict=True)):
        all_mean = chains.mean_values[:, i].numpy() * about.unit
        own = chains.values[:, i].numpy() * about.unit
        digits = decimals(all_mean, own)
        copies = f"{width} → {stage.keep}"
        rows.append(
            [name, str(stage.done), copies, *(f"{v.mean():.{digits}f}" for v in (all_mean, own))]
        )
        width = stage.keep
    head = [
        "share that remains",
        "steps done",
        "chains",
        "their mean value",
        "of the one kept at last",
    ]
    words = (
        f"{about.candidates} chains of each picture; the value was asked {chains.value_calls:,} "
        "times."
    )
    copied = int(chains.copied.sum())
    if copied:
        words += f" {copied} of {len(chains.copied)} pictures were made by a copy on the way."
    return paragraph(words) + table(head, rows)


def mark_of(score: float, share: bool) -> float | str:
    return score if share else f"{score:.4g}"


def small_png(image: Tensor) -> bytes:
    """PNG bytes of (3, H, W), at most SIDE pixels a side."""
    picture, buffer = to_pil(image), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def score_rows(arms: Sequence[Arm], prompts: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each arm and picture, for arms.csv."""
    return [
        {"arm": arm.name, "prompt": str(prompt), "evaluations": arm.evaluations}
        | {name: float(np.asarray(values)[i]) for name, values in arm.scores.items()}
        for arm in arms
        for i, prompt in enumerate(prompts)
    ]
