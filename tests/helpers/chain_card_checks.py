"""Checks of chains, scores and the KL on a device that is not the CPU, in a process of its own."""

from __future__ import annotations

from unittest import mock

import torch
from diffusers import DDIMScheduler
from pretend_card import CARD, CPU, pretend_card
from tiny_models import SCHEDULE
from torch import Tensor

import diffusion.chain
from diffusion.fitting import Fitting
from diffusion.forward import draw_times, forward_process
from diffusion.guards.forward_kl import forward_kl
from diffusion.objectives.nft import NFT
from diffusion.process import reverse_process
from diffusion.rollout import draw_chains
from diffusion.scores import ChainScores, ForwardScores

SHAPE, OWNER, STEPS = (2, 3, 3), torch.tensor([0, 0, 1, 1, 1]), 4


def network(seed: int, device: torch.device):
    weight, bias = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(device)

    def predict(x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return torch.tanh(weight * x_t + bias * (t / 1000 + cond["shift"]).reshape(-1, 1, 1, 1))

    return predict


def streams(places: slice) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(len(OWNER))[places]]


def numbers(device: torch.device, in_host: bool) -> list[Tensor]:
    """What is drawn and scored, on the CPU."""
    scheduler = DDIMScheduler(**SCHEDULE)
    process, forward = reverse_process(scheduler, STEPS), forward_process(scheduler)
    cond = {"shift": torch.tensor([0.0, 1.0]).to(device)}
    policy, reference = network(0, device), network(1, device)
    chain = draw_chains(
        policy, process, cond, OWNER, SHAPE, streams, Fitting(2),
        reference=reference, storage_dtype=torch.bfloat16, device=device, in_host=in_host,
    )  # fmt: skip
    assert (chain.x.device == device) != (in_host and device != CPU)
    rows, steps = torch.tensor([4, 0, 3]), torch.tensor([3, 0, 1])
    scores = ChainScores(policy, reference, process, chain, cond, OWNER, ("log_prob", "kl"))
    seeds = [[torch.Generator().manual_seed(10 * g + i) for i in range(2)] for g in range(2)]
    draws = draw_times(forward, SHAPE, seeds, device)
    objective = NFT(kl=0.1, draws=2)
    finished = ForwardScores(
        objective, forward, policy, chain.sample, draws, cond, OWNER, reference, reference
    )
    apart = forward_kl(
        policy, reference, forward, chain.sample, cond, streams(slice(None)), batch=2, group=OWNER
    )
    some = chain.rows(torch.tensor([1, 4])).log_prob
    tables = [chain.x.float(), chain.log_prob, chain.log_prob_ref, chain.kl, some]
    scored = [scores.score(rows, steps), finished.table(policy, 3), apart]
    return [table.cpu() for table in (*tables, *scored) if table is not None]


def main() -> None:
    expected = numbers(CPU, False)
    for in_host in (True, False):
        pinned = mock.patch.object(diffusion.chain, "PINNED", ("card",))
        with pretend_card() as watched, pinned:
            found = numbers(CARD, in_host)
        assert len(found) == len(expected) == 8
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        print(in_host, dict(watched.waits))


if __name__ == "__main__":
    main()
