"""A proposer of uniform actions and a critic Q = -(a - best)², in the environment's units."""

from __future__ import annotations

import torch

from offline.spec import ActionSpec

BEST = 0.3
SPEC = ActionSpec.from_bounds([-1.0], [1.0])


class Uniform:
    """Proposes uniformly in the bounds; remembers what it was told."""

    def __init__(self, spec: ActionSpec = SPEC, chunk: int | None = None) -> None:
        self.spec = spec if chunk is None else spec.with_chunk(chunk)
        self.calls: list[int] = []
        self.told: list = []

    def reset(self):
        self.told.append("reset")

    def sample(self, obs, n, generator):
        self.calls.append(n)
        shape = (len(obs["state"]), n, self.spec.chunk, self.spec.dim)
        share = torch.rand(shape, generator=generator)
        low, high = torch.tensor(self.spec.low), torch.tensor(self.spec.high)
        return self.spec.normalize(low + share * (high - low))

    def commit(self, act):
        self.told.append(act)

    def keep(self, rows):
        self.told.append(rows.tolist())


class Quadratic:
    """Heads peak at `best`, in the environment's units; records what it is asked."""

    def __init__(self, spec: ActionSpec = SPEC, best: tuple[float, ...] = (BEST, BEST)) -> None:
        self.spec, self.best = spec, best
        self.encoded = 0
        self.seen: list[torch.Tensor] = []

    def encode(self, obs):
        self.encoded += 1
        return obs["state"]

    def score(self, features, act):
        raw = self.spec.unnormalize(act)
        self.seen.append(raw.clone())
        return torch.stack([-(raw - b).square().sum((-1, -2)) for b in self.best])

    def __call__(self, obs, act):
        return self.score(self.encode(obs), act)


class Constant(Uniform):
    """The same action whatever the seed; or one noise for all of a call."""

    def __init__(self, per_call: bool = False) -> None:
        super().__init__()
        self.per_call = per_call

    def sample(self, obs, n, generator):
        act = super().sample(obs, 1, generator if self.per_call else torch.Generator())
        return act.expand(-1, n, -1, -1)


def states(rows: int = 1) -> dict[str, torch.Tensor]:
    return {"state": torch.zeros(rows, 2)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
