"""In-memory episodes, and a one-dimensional task with good and bad operators."""

from __future__ import annotations

import numpy as np

from offline.data.episodes import Episode
from offline.spec import ActionSpec


class ListEpisodes(list):
    """A list of episodes as a dataset."""

    def __init__(self, episodes, spec, *, env="toy/line", splits=None):
        super().__init__(episodes)
        self.spec, self.env, self.meta = spec, env, {}
        self.splits = splits or {}
        self.lengths = np.array([len(e) for e in episodes])
        self.obs_shapes = {key: v.shape[1:] for key, v in episodes[0].obs.items()}


def spec(dim=1, **rest):
    return ActionSpec.from_bounds([-2.0] * dim, [2.0] * dim, **rest)


def episode(steps, *, success=None, terminated=False, dim=1, seed=0, **rest):
    """`steps` random steps whose state counts 0, 1, 2, ..."""
    rng = np.random.default_rng(seed)
    return Episode(
        obs={"state": np.arange(steps + 1, dtype=np.float32)[:, None]},
        actions=rng.uniform(-2, 2, (steps, dim)).astype(np.float32),
        rewards=np.arange(1, steps + 1, dtype=np.float32),
        terminated=terminated,
        success=success,
        **rest,
    )


def line_episode(rng, skilled, *, limit=20, image=False, language=None):
    """Walk from x = +-1 to 0 by a / 8 a step; success when |x| < .1. The unskilled dither."""
    x, xs, actions = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1), [], []
    success = False
    while len(actions) < limit and not success:
        direction = -np.sign(x) if skilled or rng.random() < 0.3 else rng.choice([-1, 1])
        action = np.clip(direction * rng.uniform(0.5, 1.5) + rng.normal(0, 0.2), -2, 2)
        xs.append(x)
        actions.append([action])
        x = np.clip(x + action / 8, -1.2, 1.2)
        success = abs(x) < 0.1
    xs.append(x)
    obs = {"state": np.array(xs, np.float32)[:, None]}
    if image:
        obs = {"camera": np.stack([picture(x) for x in xs])}
    return Episode(
        obs=obs,
        actions=np.array(actions, np.float32),
        rewards=np.zeros(len(actions), np.float32),
        terminated=False,
        success=bool(success),
        language=language,
    )


def line_data(episodes=60, *, seed=0, **rest):
    rng = np.random.default_rng(seed)
    return ListEpisodes([line_episode(rng, i % 3 == 0, **rest) for i in range(episodes)], spec())


def picture(x, size=16):
    """A white bar at x in [-1.2, 1.2]."""
    image = np.zeros((size, size, 3), np.uint8)
    column = int((x + 1.2) / 2.4 * (size - 3))
    image[:, column : column + 3] = 255
    return image
