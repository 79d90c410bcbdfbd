"""`Distracted`: a simulator with additional observations that are unrelated to the task.

The additional dimensions are a bank of van der Pol oscillators (position and velocity) on a ring,
each pulled by its neighbour, with noise on the velocities,

    dx_k = v_k dt
    dv_k = (mu (1 - x_k^2) v_k - w_k^2 x_k + c sin(x_{k-1})) dt + sigma dW_k,

and, where their number is odd, one dz = (1.5 (tanh 2z - z) + c x_last) dt + rho dW, which hops
between two wells. They are not influenced by actions and no reward depends on them. A model that
is to predict them needs capacity for it, and the noise cannot be predicted by any; a model that
knows what values depend on (VaGraM, Voelcker et al. 2022) may leave them alone.

Shape legend: n additional dimensions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np

from offline.errors import InputError
from robots.envs.flat_observations import Obs, Spaces
from robots.envs.simulators import Simulator

KEY = "distractors"
"""Of the observation."""

_DAMPING, _COUPLING, _NOISE, _HOP_NOISE = 1.5, 0.5, 0.15, 0.6  # mu, c, sigma, rho
_DT = 0.15  # one environment step; a period is some 40 of them
_STREAM = 7_919  # keeps these draws apart from the layout's, which has the same seed


class Distractors:
    """The bank itself; which it is depends on n alone.

    Args:
        count: n.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        pairs = count // 2
        # Frequencies that no small number of oscillations makes meet again.
        golden = np.arange(1, pairs + 1) * (np.sqrt(5) - 1) / 2 % 1
        self._stiffness = (0.7 + 0.8 * golden) ** 2
        self._before = np.arange(pairs) - 1
        self._noisy = pairs  # the first dimension with noise
        self._scales = np.full(count - pairs, _NOISE * np.sqrt(_DT))
        if count % 2:
            self._scales[-1] = _HOP_NOISE * np.sqrt(_DT)
        self._rng = np.random.default_rng()
        self._now = np.zeros(count)

    def reset(self, seed: int) -> np.ndarray:
        """(n,) float32, standardised; somewhere on its way, by the seed."""
        run, _, _ = _long_run(self.count)
        self._rng = np.random.default_rng([seed, _STREAM])
        self._now = run[self._rng.integers(len(run))]
        return self._observed()

    def step(self) -> np.ndarray:
        """(n,) float32, one environment step later."""
        self._now = self.advanced(self._now, self._rng)
        return self._observed()

    def advanced(self, now: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(..., n) one environment step later: the midpoint rule for the drift, then the noise."""
        following = now + _DT * self._drift(now + _DT / 2 * self._drift(now))
        moved = following[..., self._noisy :]
        moved += self._scales * rng.standard_normal(moved.shape)
        return following

    def _drift(self, now: np.ndarray) -> np.ndarray:
        """Of the positions, the velocities, and the last one if n is odd."""
        pairs, drift = self._noisy, np.empty_like(now)
        x, v = now[..., :pairs], now[..., pairs : 2 * pairs]
        drift[..., :pairs] = v
        pull = _DAMPING * (1 - x * x) * v - self._stiffness * x
        drift[..., pairs : 2 * pairs] = pull + _COUPLING * np.sin(x[..., self._before])
        if self.count % 2:
            z = now[..., -1]
            drift[..., -1] = 1.5 * (np.tanh(2 * z) - z)
            if pairs:
                drift[..., -1] += _COUPLING * x[..., -1]
        return drift

    def _observed(self) -> np.ndarray:
        _, mean, std = _long_run(self.count)
        return ((self._now - mean) / std).astype(np.float32)


@lru_cache
def _long_run(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T, n) states, the same ones always, with their mean and standard deviation (n,)."""
    bank, rng = Distractors(count), np.random.default_rng(_STREAM)
    now, states = 0.5 * rng.standard_normal((64, count)), []
    for t in range(300):
        now = bank.advanced(now, rng)
        if t >= 200:  # no longer near where it began
            states.append(now)
    run = np.concatenate(states)
    return run, run.mean(0), run.std(0)


class Distracted:
    """A simulator whose observations have n more numbers, under "distractors".

    Args:
        name: of the environment, for messages.
        simulator: all else is as it says.
        count: n.

    Raises:
        InputError: fewer than one, or the simulator observes that key itself.
    """

    def __init__(self, name: str, simulator: Simulator, count: int) -> None:
        if count < 1:
            raise InputError(f"--distractors must be at least 0, received {count}")
        if KEY in simulator.observation_spaces:
            raise InputError(f'"{name}" already observes {KEY}')
        self.simulator, self._bank = simulator, Distractors(count)
        self.action_spec, self.max_steps = simulator.action_spec, simulator.max_steps
        self.language, self.has_success = simulator.language, simulator.has_success
        self.camera = simulator.camera
        space = gymnasium.spaces.Box(-np.inf, np.inf, (count,), np.float32)
        self.observation_spaces: Spaces = {**simulator.observation_spaces, KEY: space}

    @property
    def raw(self) -> Any:
        """The simulator's own environment."""
        return self.simulator.raw  # type: ignore[attr-defined]

    def reset(self, seed: int) -> Obs:
        return self.simulator.reset(seed) | {KEY: self._bank.reset(seed)}

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, success, info = self.simulator.step(action)
        return obs | {KEY: self._bank.step()}, reward, terminated, success, info

    def scene(self) -> tuple[Any, Any, Any]:
        return self.simulator.scene()

    def close(self) -> None:
        self.simulator.close()
