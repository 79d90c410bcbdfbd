"""Looking one decision further: score candidates by what a world model says they lead to.

    score_e(s, a) = mean over draws of  R + discount * Q_e(s', a'*),    (R, discount, s') ~ model,
    a'* = argmax_a' min_e Q_e(s', a')  over the candidates in s'

Candidates there are proposed, edited and scored just as those here are: by a `Steered`, one
decision later. R sums the chunk's rewards, discount is gamma^H, and 0 after a predicted
termination. Errors of the critic count for less by the factor gamma^H, and those of the model are
new; the maximum over s' looks for both, so the average over draws matters. Acting alone looks
ahead; targets do not.

Shape legend: B rows, K candidates, R draws, E heads, H action chunk, A action dimension, D state
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from genpol.steer import Steered
from offline.imagination import imagine_chunk
from offline.types import Obs
from offline.world_model import WorldModel


class LookaheadScore:
    """An `offline.types.Critic` for `genpol.steer.Steered`: depth 2 where `ahead` is depth 1.

    Args:
        ahead: decides in the predicted states, by `argmax`; it must know any state, whatever
            episode it is in, and its critic gives the scores.
        model: of the environment, for actions normalised as the critic's are.
        discount: per environment step (gamma).
        generator: draws the model's noise and the candidates in s'; kept by the caller, who saves
            its state.
        draws: predictions of each candidate (R); of an ensemble, each by a member of its own draw.
        ready: whether the model knows anything yet; until then scores are those of the critic.
    """

    def __init__(
        self,
        ahead: Steered,
        model: WorldModel,
        discount: float,
        generator: Generator,
        *,
        draws: int = 4,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self.ahead, self.model, self.spec = ahead, model, ahead.score.spec
        self.discount, self.generator = discount, generator
        self.draws, self.ready = draws, ready

    def encode(self, obs: Obs) -> Tensor:
        """(B, D): the state itself, for the model to go on from."""
        return self.model.layout.flat(obs)

    def score(self, features: Tensor, act: Tensor) -> Tensor:
        """(B, D) and (B, K, H, A) -> (E, B, K)."""
        # Out of `Steered`'s inference mode: a base policy may keep what it makes. Hence the clones.
        with torch.inference_mode(False), torch.no_grad():
            state, act = features.clone(), act.clamp(-1, 1)
            if not self.ready():
                return self.ahead.score(self.model.layout.split(state), act)
            rows, count = act.shape[:2]
            times = count * self.draws
            chunk = imagine_chunk(
                self.model,
                state.repeat_interleave(times, dim=0),
                act.flatten(0, 1).repeat_interleave(self.draws, dim=0),
                self.discount,
                self.generator,
            )
            there = self.ahead.decide(self.model.layout.split(chunk.next_state), self.generator)
            chosen = there.chosen.expand(len(there.heads), -1)[..., None]
            value = there.heads.gather(2, chosen)[..., 0]  # (E, B K R)
            # `where`, since the critic may say anything of a state in which the episode ended
            total = chunk.reward + torch.where(chunk.terminated, 0.0, chunk.discount * value)
            return total.view(-1, rows, count, self.draws).mean(-1)

    def __call__(self, obs: Obs, act: Tensor) -> Tensor:
        """(B, K, H, A) -> (E, B, K)."""
        return self.score(self.encode(obs), act)
