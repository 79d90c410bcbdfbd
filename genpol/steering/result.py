"""Result of a steering evaluation: every arm on the same initial states, and the advice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genpol.reports.stats import mcnemar, paired_difference, paired_outcomes, wilson
from offline.errors import InputError

TITLES = {
    "base": "base, one sample",
    "steered": "steered",
    "mode": "base, mode",
    "random": "random of K",
    "filtered": "clone of successes",
}


@dataclass
class ArmResult:
    """N episodes of one arm; entry i of each belongs to `seeds[i]`."""

    success: np.ndarray
    """(N,) bool."""
    returns: np.ndarray
    """(N,) sum of rewards."""
    lengths: np.ndarray
    """(N,) steps."""
    seeds: np.ndarray
    """(N,) of the initial states."""
    scores: np.ndarray | None = None
    """(N,) value of the first chosen chunk; None where nothing was scored."""
    fell_back: float = 0.0
    """Share of decisions that the gate gave back."""
    spread: float = float("nan")
    """Of the candidates, in standard deviations of the data."""
    note: str = ""
    """A remark for the table, such as how the mode was decoded."""


@dataclass
class SteerResult:
    """An evaluation; arms by name, "base" and "steered" at least, from `TITLES`."""

    arms: dict[str, ArmResult]
    latency: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Seconds of single decisions (B = 1) of "base" and "steered", taken in turn."""
    title: str = ""
    """What was evaluated, such as "runs/clone on metaworld/push-v3"."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Shown on the page: K, temperature, gate..."""
    diversity: str | None = None
    """The verdict of the diversity check."""
    mode_kind: str = "mode"
    """"mode", or "medoid" where the policy cannot decode its mode."""
    videos: list[tuple[str, str]] = field(default_factory=list)
    """(caption, path relative to the page)."""

    def __post_init__(self) -> None:
        missing = {"base", "steered"} - self.arms.keys()
        if missing:
            raise InputError(f"the arm {sorted(missing)[0]!r} is missing: it is always run")
        base = self.arms["base"]
        for name, arm in self.arms.items():
            if not np.array_equal(arm.seeds, base.seeds):
                raise InputError(
                    f"arm {name!r} and the base faced different initial states; arms are compared "
                    "on the same seeds, in the same order"
                )

    @property
    def episodes(self) -> int:
        return len(self.arms["base"].seeds)

    def rate(self, arm: str) -> float:
        """Share of successes."""
        return float(np.mean(self.arms[arm].success))

    def summary(self) -> dict[str, float]:
        """Flat numbers, for summary.json and the logger.

        steer/success_ARM (_low, _high)   share of successes, 95 % Wilson interval
        steer/difference (_low, _high)    steered - base, 95 % bootstrap over pairs
        steer/p_value                     exact McNemar test, two-sided, steered against base
        steer/latency_ratio               median of steered / median of base
        steer/latency_p50_ms, _p95_ms     of one steered decision
        """
        numbers: dict[str, float] = {}
        for name, arm in self.arms.items():
            key = f"steer/success_{name}"
            numbers[key] = self.rate(name)
            numbers[f"{key}_low"], numbers[f"{key}_high"] = wilson(
                int(arm.success.sum()), self.episodes
            )
        base, steered = self.arms["base"].success, self.arms["steered"].success
        numbers["steer/difference"], low, high = paired_difference(
            base, steered, np.random.default_rng(0)
        )
        numbers["steer/difference_low"], numbers["steer/difference_high"] = low, high
        numbers["steer/p_value"] = mcnemar(base, steered)
        numbers["steer/episodes"] = float(self.episodes)
        if self.latency:
            plain, steered_s = (np.asarray(self.latency[name]) for name in ("base", "steered"))
            numbers["steer/latency_ratio"] = float(np.median(steered_s) / np.median(plain))
            numbers["steer/latency_p50_ms"] = 1e3 * float(np.percentile(steered_s, 50))
            numbers["steer/latency_p95_ms"] = 1e3 * float(np.percentile(steered_s, 95))
        if math.isfinite(self.arms["steered"].spread):
            numbers["steer/spread"] = float(self.arms["steered"].spread)
        numbers["steer/fell_back"] = float(self.arms["steered"].fell_back)
        return numbers

    def outcomes(self, arm: str = "steered") -> dict[str, int]:
        """How often both, only the base, only `arm`, or neither succeeded."""
        return paired_outcomes(self.arms["base"].success, self.arms[arm].success)

    def advice(self) -> str:
        """One line: what to deploy, and how sure the episodes are of it."""
        base, steered = self.rate("base"), self.rate("steered")
        p = mcnemar(self.arms["base"].success, self.arms["steered"].success)
        mode = self.rate("mode") if "mode" in self.arms else -math.inf
        if mode >= max(steered, base) and mode > 0:
            what = "mode decoding" if self.mode_kind == "mode" else "the medoid of its samples"
            if mode > steered:
                against = mcnemar(self.arms["steered"].success, self.arms["mode"].success)
                return (
                    f"{what} beats steering here ({mode:.0%} against {steered:.0%}, "
                    f"p = {against:.2g}): use it"
                )
            return (
                f"{what} does as well as steering here ({mode:.0%}): use it, it needs no value "
                "function"
            )
        if steered < base:
            sure = "it harms" if p < 0.05 else "it does not help, as far as these episodes tell"
            return (
                f"do not steer with this value: {sure} ({base:.0%} to {steered:.0%}, p = {p:.2g})"
            )
        if p >= 0.05:
            return (
                f"no clear gain from steering ({base:.0%} to {steered:.0%}, p = {p:.2g}): run more "
                "--episodes before relying on it"
            )
        filtered = self.rate("filtered") if "filtered" in self.arms else -math.inf
        if filtered > steered:
            return (
                f"steering helps ({base:.0%} to {steered:.0%}, p = {p:.2g}), but the clone of the "
                f"successful episodes does better ({filtered:.0%}): use that where you can train"
            )
        return f"steer: success {base:.0%} to {steered:.0%} (p = {p:.2g}, paired)"
