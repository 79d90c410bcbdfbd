"""Temperature and gate chosen offline, from held-out observations alone; no environment.

At each held-out observation the base policy proposes K candidates, as it would in deployment. A
setting is judged by what it is expected to gain over a plain sample, in units of the value:

    J = E_s [mean_k 1(d_k <= gate)] [sum_k (p_k - 1/K) (a_k - w_d d_k - w_o sigma_s o_k)]

    p_k    chance of being picked, softmax over the minimum of all heads *but one*
    a_k    advantage over the mean candidate by the head left out, as in double Q-learning
           (van Hasselt 2010): a head's own errors, which selection seeks out, are not counted as
           gain. Every head is left out in turn and the results averaged.
    d_k    disagreement of the heads about that advantage, the quantity `Steered` gates
    o_k    how far the candidate lies from the others, in standard deviations of that distance
           (never below 0): the base policy imitates the data, so an outlier among its proposals is
           where a critic extrapolates
    sigma_s  standard deviation of the value over the candidates, so that o_k has units

A plain sample gains 0, and so does a pick that the gate gives back. How often that happens in a
state is taken from all its candidates, not from the pick: d_k knows the head left out, and where
heads happen to agree on a pick its value is high without being right. Sums over k are exact:
nothing is sampled but the candidates. Of all settings whose J cannot be told from the best (by one
standard error of the paired difference over observations), the highest temperature is taken, then
the gate that falls back least: no more steering, and no more machinery, than the data supports.

Limits. The heads were trained on the same data with the same targets, so what they
get wrong together (a reward hole, a value that extrapolates upwards) passes for gain, and J stays
optimistic. Held-out states are those that the demonstrators visited, not those that the steered
policy will reach. The weights are a choice. Only the difference between settings means something,
and episodes (`genpol steer`) have the last word. A policy with a history sees each observation as
the first of its episode. Heads of several composed values share parts, so leaving one out leaves
less out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genpol.steering.action_units import Units
from offline.errors import InputError
from offline.types import Critic, Obs, Policy

RELATIVE = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # temperatures, in the candidates' std of the value
QUANTILES = (0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.6, 0.5)  # of the disagreement, for the gate


@dataclass(frozen=True)
class Setting:
    """A temperature and a gate, and what is expected of them; values in units of the value."""

    temperature: float
    gate: float | None
    objective: float
    """J."""
    error: float
    """Its standard error, over observations."""
    behind: float
    """How much better the best setting is."""
    behind_error: float
    """Standard error of that difference."""
    advantage: float
    """Expected gain by the head left out, before penalties."""
    own_advantage: float
    """The same by the heads that selected; what exceeds `advantage` is their own error."""
    disagreement: float
    distance: float
    """Expected d and o of what is picked, times the chance that the gate lets it pass."""
    fell_back: float
    """Share of picks that the gate gives back."""


@dataclass(frozen=True)
class Tuning:
    """The choice, and the table that it was made from."""

    temperature: float
    gate: float | None
    table: list[Setting]
    note: str
    """What a reader should know of the choice, in a line."""


def tune(
    base: Policy,
    critic: Critic,
    observations: Obs,
    *,
    num_candidates: int = 32,
    seed: int = 0,
    temperatures: Sequence[float] | None = None,
    disagreement_weight: float = 1.0,
    distance_weight: float = 0.25,
    batch: int = 64,
) -> Tuning:
    """Choose temperature and gate for steering `base` by `critic` on held-out observations.

    Args:
        base: proposes.
        critic: scores.
        observations: held out from both, each (N, ...).
        num_candidates: K, as in deployment; at least 2.
        seed: of the proposals.
        temperatures: to choose from, in units of the value; by default multiples of the standard
            deviation of the value over the candidates of a state.
        disagreement_weight: w_d.
        distance_weight: w_o.
        batch: observations at a time.

    Raises:
        SpecError: the policy's actions cannot be what the critic was trained on.
        InputError: no observations, or fewer than 2 candidates.
    """
    if num_candidates < 2:
        raise InputError(f"tuning ranks at least 2 candidates, received {num_candidates}")
    q, distance = _propose(base, critic, observations, num_candidates, seed, batch)
    deviation = q.mean(0).std(-1, correction=0)  # (N,)
    advantage = q - q.mean(-1, keepdim=True)  # (E, N, K)
    doubt = advantage.std(0, correction=0)  # (N, K)
    penalty = disagreement_weight * doubt + distance_weight * deviation[:, None] * distance
    if temperatures is None:
        unit = float(deviation.mean())
        temperatures = sorted({float(f"{r * unit:.2g}") for r in RELATIVE})
    gates: list[float | None] = [None]
    if len(q) > 1:
        levels = torch.quantile(doubt.flatten()[:1_000_000], torch.tensor(QUANTILES).double())
        gates += [float(f"{level:.3g}") for level in levels.tolist() if level > 0]

    settings, gains = [], []
    for temperature in temperatures:
        splits = [_picks(q, temperature, left_out) for left_out in range(len(q))]
        for gate in dict.fromkeys(gates):
            passed = torch.ones_like(doubt) if gate is None else (doubt <= gate).double()
            rate = passed.mean(-1) / len(splits)
            row = {name: torch.zeros(len(doubt)).double() for name in _PARTS}
            for left_out, chance in enumerate(splits):
                chosen_by = [e for e in range(len(q)) if e != left_out or len(q) == 1]
                own = advantage[chosen_by].mean(0)
                parts = {
                    "objective": advantage[left_out] - penalty,
                    "advantage": advantage[left_out],
                    "own_advantage": own,
                    "disagreement": doubt,
                    "distance": distance,
                }
                for name, part in parts.items():
                    over = chance - 1 / chance.shape[-1] if name == "objective" else chance
                    row[name] += rate * (over * part).sum(-1)
                row["fell_back"] += (chance * (1 - passed)).sum(-1) / len(splits)
            settings.append((temperature, gate, {k: float(v.mean()) for k, v in row.items()}))
            gains.append(row["objective"])
    return _choose(settings, torch.stack(gains), heads=len(q))


_PARTS = ("objective", "advantage", "own_advantage", "disagreement", "distance", "fell_back")


def _choose(
    settings: list[tuple[float, float | None, dict[str, float]]], gains: Tensor, heads: int
) -> Tuning:
    """`gains`: (settings, N) contribution of each observation to J."""
    best = int(gains.mean(1).argmax())
    behind = gains[best] - gains
    root = max(gains.shape[1] - 1, 1) ** 0.5
    errors = gains.std(1, correction=0) / root
    behind_errors = behind.std(1, correction=0) / root
    table = [
        Setting(t, gate, error=float(e), behind=float(b), behind_error=float(be), **row)
        for (t, gate, row), e, b, be in zip(
            settings, errors, behind.mean(1), behind_errors, strict=True
        )
    ]
    as_good = [row for row in table if row.behind <= row.behind_error]
    chosen = max(as_good, key=lambda row: (row.temperature, -row.fell_back))
    notes = [
        f"expected gain {chosen.objective:+.3g} in units of the value, penalties taken off "
        f"({chosen.advantage:+.3g} before; {chosen.own_advantage:+.3g} by the heads that chose)"
    ]
    if chosen.objective <= 2 * chosen.error:
        notes.append("which is no clear gain: consider not steering with this value")
    if heads == 1:
        notes.append("one head only: gain is judged by the head that chose, which is optimistic")
    return Tuning(chosen.temperature, chosen.gate, table, "; ".join(notes))


def _propose(
    base: Policy, critic: Critic, observations: Obs, num: int, seed: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Values (E, N, K) and outlyingness (N, K) of the base policy's proposals, in float64."""
    critic.spec.require_scorable(base.spec)
    units = Units(base.spec, critic.spec)
    generator = torch.Generator().manual_seed(seed)
    count = len(next(iter(observations.values()), ()))
    if count == 0:
        raise InputError("there are no held-out observations to tune on")
    values, distances = [], []
    for start in range(0, count, batch):
        obs = {key: value[start : start + batch] for key, value in observations.items()}
        base.reset()
        with torch.no_grad():
            act = base.sample(obs, num, generator)[:, :, : critic.spec.chunk]
            units.require_in_range(act)
            act = units.clip(act)
            features = critic.encode(obs)
            q = critic.score(features, units.convert(act, features.device))
            values.append(q.double().cpu())
            distances.append(_outlying((act * units.per_std(act.device)).flatten(2).double().cpu()))
    base.reset()
    q = torch.cat(values, 1)
    if not bool(torch.isfinite(q).all()):
        raise InputError("the critic gave NaN or infinite values: are its weights intact?")
    return q, torch.cat(distances)


def _outlying(flat: Tensor) -> Tensor:
    """(N, K, D) -> (N, K): each one's mean distance to the others, standardised, at least 0."""
    mean = torch.cdist(flat, flat).sum(-1) / (flat.shape[1] - 1)
    centred = mean - mean.mean(-1, keepdim=True)
    return (centred / mean.std(-1, correction=0, keepdim=True).clamp(min=1e-6)).clamp(min=0)


def _picks(q: Tensor, temperature: float, left_out: int) -> Tensor:
    """(N, K): chances of each candidate by the minimum over the other heads (all, if only one)."""
    others = q if len(q) == 1 else torch.cat([q[:left_out], q[left_out + 1 :]])
    scores = others.amin(0)
    if temperature == 0:
        return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).double()
    return torch.softmax(scores / temperature, -1)
