"""n proposals for each of B episodes from the networks of a robomimic algorithm.

robomimic's own `get_action` draws one action for one episode and advances its hidden state and
queues as it does so. Here the same networks answer for many, the state is a value that is passed in
and returned, and nothing of the algorithm is altered: a flag is set on a shallow copy of a network,
which shares its weights. This file knows the networks by duck type and does not import robomimic.

Source of the conventions: robomimic 0.3 (`algo/bc.py`, `envs/wrappers.py`) and the
`algo/diffusion_policy.py` of later versions.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from offline.draws import globally_seeded
from offline.errors import InputError
from offline.types import Obs


@dataclass(frozen=True)
class Memory:
    """What a policy remembers of B episodes."""

    decisions: int = 0
    """Since the episodes began."""
    hidden: Any = None
    """Of an RNN: (layers, B, D), or a pair of them for an LSTM."""
    anchor: Obs | None = None
    """The observation that an open-loop RNN goes on seeing, (B, ...)."""
    frames: Obs | None = None
    """The last T observations, (B, T, ...)."""

    def keep(self, rows: Tensor) -> Memory:
        """The memory of these rows (R,) only."""
        return Memory(
            self.decisions,
            _select(self.hidden, rows, dim=1),
            _select(self.anchor, rows, dim=0),
            _select(self.frames, rows, dim=0),
        )


def is_trajectory(algo: Any) -> bool:
    """It denoises whole trajectories (robomimic's diffusion policy)."""
    return hasattr(algo, "_get_action_trajectory")


def is_implicit(algo: Any) -> bool:
    """Its networks give draws and no distribution: diffusion and VAE."""
    return is_trajectory(algo) or hasattr(algo.nets["policy"], "sample_prior")


def stacked_frames(algo: Any) -> int:
    """Observations that it sees at once; 0 where its inputs have no time axis."""
    if is_trajectory(algo):
        return int(algo.algo_config.horizon.observation_horizon)
    return int(getattr(algo, "context_length", 0))


def propose(
    algo: Any, obs: Obs, n: int, memory: Memory, *, low_noise: bool
) -> tuple[Tensor, Memory]:
    """Draw from the networks of `algo`, which must be in evaluation mode.

    Args:
        algo: robomimic's algorithm.
        obs: the networks' inputs, (B, ...), or (B, T, ...) where frames are stacked already.
        n: proposals for each row.
        memory: of the B episodes.
        low_noise: decode with the network's own `low_noise_eval` on; else draw with it off.

    Returns:
        Proposals (B, n, T, D) in the network's units, T = 1 except for diffusion; and the memory
        once this observation has been acted on, which does not depend on what was drawn.

    Raises:
        InputError: the observations have another number of rows than the memory.
    """
    if frames := stacked_frames(algo):
        obs = _stack(obs, memory.frames, frames, algo.obs_shapes)
        memory = replace(memory, frames=obs)
    if is_trajectory(algo):  # not `get_action`: its queue keeps the first row's actions only
        act = algo._get_action_trajectory(obs_dict=_tile(obs, n))
        return act.unflatten(0, (-1, n)), memory
    if is_implicit(algo):
        return algo.nets["policy"](_tile(obs, n)).unflatten(0, (-1, n))[:, :, None], memory

    net = copy.copy(algo.nets["policy"])
    stochastic = hasattr(net, "low_noise_eval")
    if stochastic:
        net.low_noise_eval = low_noise
    draw = stochastic and not low_noise
    forward = net.forward_train if draw else net.forward
    if hasattr(algo, "_rnn_horizon"):
        obs, memory = _recall(algo, obs, memory)
        steps = {key: value[:, None] for key, value in obs.items()}
        out, hidden = forward(steps, rnn_init_state=memory.hidden, return_state=True)
        memory = replace(memory, decisions=memory.decisions + 1, hidden=hidden)
    else:
        out = forward(obs)
    # One pass serves all n: draws of one distribution, or copies where there is none to draw from.
    act = out.sample((n,)) if draw else out[None].expand(n, *out.shape)
    if act.ndim == 4:  # (n, B, T, D): only the last step acts
        act = act[:, :, -1]
    return act.movedim(0, 1)[:, :, None], memory


@contextlib.contextmanager
def evaluating(nets: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode again afterwards."""
    training = [module for module in nets.modules() if module.training]
    nets.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def drawing_from(generator: Generator | None, device: torch.device) -> Iterator[None]:
    """Torch's global draws come from `generator` inside. On the CPU they continue its stream, on
    another device they have a seed that it draws."""
    if generator is None:
        yield
        return
    if device.type != "cpu":
        with globally_seeded(int(torch.randint(2**31 - 1, (), generator=generator))):
            yield
        return
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
        generator.set_state(torch.get_rng_state())
    finally:
        torch.set_rng_state(before)


def _recall(algo: Any, obs: Obs, memory: Memory) -> tuple[Obs, Memory]:
    """What an RNN sees and the hidden state it starts from, reset every `rnn.horizon` decisions."""
    rows = len(next(iter(obs.values())))
    if memory.hidden is None or memory.decisions % algo._rnn_horizon == 0:
        hidden = algo.nets["policy"].get_rnn_init_state(batch_size=rows, device=algo.device)
        memory = replace(memory, hidden=hidden, anchor=obs if algo._rnn_is_open_loop else None)
    state = memory.hidden[0] if isinstance(memory.hidden, tuple) else memory.hidden
    _require_rows(rows, state.shape[1])
    return memory.anchor or obs, memory


def _stack(obs: Obs, past: Obs | None, frames: int, shapes: dict[str, Any]) -> Obs:
    """The last `frames` observations, (B, T, ...); an episode starts with T times its first."""
    stacked = {}
    for key, value in obs.items():
        if value.ndim == len(shapes[key]) + 2:  # the environment stacks frames itself
            stacked[key] = value
            continue
        if past is None:
            earlier = value[:, None].expand(-1, frames - 1, *value.shape[1:])
        else:
            _require_rows(len(value), len(past[key]))
            earlier = past[key][:, 1:]
        stacked[key] = torch.cat([earlier, value[:, None]], 1)
    return stacked


def _tile(obs: Obs, n: int) -> Obs:
    return {key: value.repeat_interleave(n, 0) for key, value in obs.items()}


def _select(state: Any, rows: Tensor, dim: int) -> Any:
    if state is None:
        return None
    if isinstance(state, dict):
        return {key: _select(value, rows, dim) for key, value in state.items()}
    if isinstance(state, tuple):
        return tuple(_select(value, rows, dim) for value in state)
    return state.index_select(dim, rows.to(state.device))


def _require_rows(received: int, remembered: int) -> None:
    if received != remembered:
        raise InputError(
            f"received observations of {received} episodes, the policy remembers {remembered}: "
            "call reset() for new episodes, keep(rows) when some have ended"
        )
