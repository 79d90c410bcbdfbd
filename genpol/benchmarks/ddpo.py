"""The comparison loop of `genpol bench finetune`: a PRDP epoch with the structure of DDPO's code.

The public DDPO trainers, and those derived from them, share this structure:

    1. batch by batch of images: encode each image's prompt, draw chains, keep all latents
    2. reference log-probs in a second pass over the stored chains
    3. per inner step: batch by batch of images, a Python loop over timesteps, each with its own
       forward (guidance concatenated) and backward

The arithmetic (predictor, step densities, objective, noise, batch sizes) is the product's, so that
the structure alone is compared and both loops have the same gradient. PRDP's coefficient of each
log-prob is taken as known, from the stored log-probs at the first inner step and from one more
pass at later ones: with one graph over a prompt's B images and T steps instead, as a direct
transcription of the loss would have it, this loop would need B T times the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.chain import Condition, DenoisingChain, sample_chain, score_chain, score_steps
from diffusion.finetune import Finetuner
from diffusion.loading import DTYPES
from diffusion.objective import Rollouts
from diffusion.scores import take
from diffusion.streams import ROLLOUT, generators


def ddpo_epoch(tuner: Finetuner) -> None:
    """Advance a tuner one epoch, as `tuner.run_epoch()` does, by the usual loop."""
    cfg, policy = tuner.config, tuner.policy
    prompts = tuner.prompts.train(tuner.epoch, cfg.prompts_per_epoch, cfg.seed)
    repeated = [prompt for prompt in prompts for _ in range(cfg.images_per_prompt)]
    chains, conds, rewards, size = [], [], [], tuner.rollout_batch.size
    for first in range(0, len(repeated), size):
        batch = repeated[first : first + size]
        cond = policy.encode(batch)
        chain = sample_chain(
            policy.predict,
            tuner.process,
            cond,
            policy.latent_shape,
            generators(cfg.seed, ROLLOUT, tuner.epoch, range(first, first + len(batch))),
            storage_dtype=DTYPES[cfg.storage_dtype],
            device=policy.device,
        )
        with torch.no_grad():
            chain.log_prob_ref = score_chain(policy.predict_reference, tuner.process, chain, cond)
        chains.append(chain)
        conds.append(cond)
        rewards.append(tuner.reward(policy.decode(chain.sample.float()), batch))
    chain = DenoisingChain.concatenate(chains)
    cond = {name: torch.cat([part[name] for part in conds]) for name in conds[0]}
    assert chain.log_prob_ref is not None
    rollouts = Rollouts(
        log_prob_old=chain.log_prob.cpu(),
        log_prob_ref=chain.log_prob_ref.cpu(),
        reward=torch.cat(rewards),
        group=torch.arange(len(prompts)).repeat_interleave(cfg.images_per_prompt),
        step_weight=tuner.weights,
        dimensions=chain.dimensions,
    )
    for k in range(cfg.inner_steps):
        tuner.trained.optimiser.zero_grad(set_to_none=True)
        log_prob = rollouts.log_prob_old if k == 0 else current(tuner, chain, cond)
        backward(tuner, chain, cond, coefficients(tuner, log_prob, rollouts))
        tuner.trained.step()
    tuner.epoch += 1


def current(tuner: Finetuner, chain: DenoisingChain, cond: Condition) -> Tensor:
    """(M, T) log-probs of stored chains under the current weights, batch by batch."""
    parts = []
    with torch.no_grad():
        for rows in torch.arange(chain.x.shape[1]).split(tuner.micro_batch.size):
            part = DenoisingChain(chain.x[:, rows], chain.log_prob[rows])
            parts.append(
                score_chain(tuner.policy.predict, tuner.process, part, take(cond, rows)).cpu()
            )
    return torch.cat(parts)


def coefficients(tuner: Finetuner, log_prob: Tensor, rollouts: Rollouts) -> Tensor:
    """(M, T) dL / d log-prob."""
    leaf = log_prob.detach().clone().requires_grad_(True)
    loss, _ = tuner.objective(leaf, rollouts)
    return torch.autograd.grad(loss, leaf)[0]


def backward(tuner: Finetuner, chain: DenoisingChain, cond: Condition, table: Tensor) -> None:
    """Accumulate the gradient: for each batch of images, for each timestep."""
    for rows in torch.arange(chain.x.shape[1]).split(tuner.micro_batch.size):
        embeds = take(cond, rows)
        for step in range(tuner.process.num_steps):
            if tuner.weights[step] == 0:
                continue
            values = score_steps(
                tuner.policy.predict,
                tuner.process,
                chain,
                embeds,
                rows,
                torch.full_like(rows, step),
            )
            tuner.backward(values, table[rows, step].to(values))
