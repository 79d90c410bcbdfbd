"""The plain loops that `genpol bench finetune` stands beside: what diffusers' users write first.

    rollout    the pipeline's own call, batch by batch of images, latents decoded
    training   for each micro-batch: the network's output, a loss of it, its backward; at the end a
               step of AdamW

Both have as many images, steps and micro-batches as an epoch of ours, on the same weights and in
the same precision. They keep no chains and no log-probs, compute no reference and ask no reward, so
what ours takes beyond them is the price of all that.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from diffusion.finetune import Finetuner
from diffusion.scores import take
from diffusion.streams import ROLLOUT, generators


def plain_rollout(tuner: Finetuner, rollout_batch: int) -> None:
    """Draw an epoch's images by the pipeline's own call."""
    cfg: Any = tuner.config
    policy = tuner.policy
    prompts: list[str] = tuner.prompts.train(tuner.epoch, cfg.prompts_per_epoch, cfg.seed)
    repeated = [prompt for prompt in prompts for _ in range(cfg.images_per_prompt)]
    extra: dict[str, Any] = {"eta": cfg.eta} if policy.family.own_call else {}
    for first in range(0, len(repeated), rollout_batch):
        batch = repeated[first : first + rollout_batch]
        which = range(first, first + len(batch))
        with _precision(tuner), torch.no_grad():
            policy.pipe(
                prompt=batch,
                num_inference_steps=cfg.num_inference_steps,
                guidance_scale=cfg.guidance_scale,
                height=policy.family.height,
                width=policy.family.width,
                generator=generators(cfg.seed, ROLLOUT, tuner.epoch, which),
                output_type="pt",
                **extra,
            )


def plain_training(tuner: Finetuner, micro_batch: int) -> None:
    """Train on an epoch's images: the same network calls as ours, and one step after each round.

    The loss is the mean square of the output, so that weights hardly change their size.
    """
    cfg: Any = tuner.config
    policy = tuner.policy
    prompts: list[str] = tuner.prompts.train(tuner.epoch, cfg.prompts_per_epoch, cfg.seed)
    cond = policy.encode(prompts)
    images = len(prompts) * cfg.images_per_prompt
    parameters = list(tuner.trained.parameters.values())
    optimiser = torch.optim.AdamW(parameters, lr=1e-9)
    steps = (tuner.weights > 0).nonzero()[:, 0]
    rows = torch.arange(images).repeat_interleave(len(steps))
    times = tuner.process.timesteps[steps % tuner.process.num_steps].repeat(images)
    x = torch.randn(images, *policy.latent_shape, device=policy.device)
    for k in range(cfg.inner_steps):
        # Ours knows the log-probs at the first step, and takes them in one more pass at others.
        if k:
            for part in torch.arange(len(rows)).split(micro_batch):
                with torch.no_grad():
                    _output(tuner, x, times, cond, rows, part)
        optimiser.zero_grad(set_to_none=True)
        for part in torch.arange(len(rows)).split(micro_batch):
            output = _output(tuner, x, times, cond, rows, part)
            tuner.backward(output.square().mean(), torch.ones((), device=policy.device))
        torch.nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm)
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _output(
    tuner: Finetuner, x: Any, times: Any, cond: Any, rows: torch.Tensor, part: torch.Tensor
) -> torch.Tensor:
    at, device = rows[part], tuner.policy.device
    here = take(cond, at // tuner.config.images_per_prompt)
    return tuner.policy.predict(x[at.to(device)], times[part].to(device), here)


def _precision(tuner: Finetuner) -> AbstractContextManager[Any]:
    dtype = tuner.policy.autocast_dtype
    return torch.autocast(tuner.policy.device.type, dtype) if dtype else nullcontext()
