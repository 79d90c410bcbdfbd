"""The start-up check of a fine-tuning run; it takes a second or two.

ratio      re-scoring a step in the training path gives the stored log-prob, within a fraction
           of the clip's half-width: else the clip would act on rounding
reference  policy and reference agree before any update: else the KL is measured from nowhere
guidance   the guided prediction is uncond + s (cond - uncond) of two plain ones
ties       the reward tells images of one prompt apart: tied pairs teach nothing
margins    with pairs from a file: policy and reference have the same losses before any update
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from diffusion.chain import DenoisingChain, draw, score_steps
from diffusion.errors import InputError
from diffusion.evaluating import Held
from diffusion.finetune import Finetuner
from diffusion.loading import DTYPES
from diffusion.objective import tie_fraction
from diffusion.pipelines import ImagePolicy
from diffusion.prdp import PRDP
from diffusion.preference_tuning import PreferenceTuner
from diffusion.scores import take
from diffusion.streams import CHECK, generators

PROBES = 6  # denoising steps probed


@dataclass
class CheckReport:
    """Measured numbers (metric name -> value) and one-line warnings."""

    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def self_check(tuner: Finetuner) -> CheckReport:
    """Probe a tuner before its first epoch; InputError where training would be meaningless."""
    report = CheckReport()
    prompt = tuner.prompts.train(0, 1, tuner.config.seed)[0]
    if not tuner.forward:  # which scores no step
        _check_ratio(tuner, prompt, report)
    _check_guidance(tuner.policy, prompt, report)
    if not isinstance(tuner, PreferenceTuner):  # its pairs have no ties
        _check_ties(tuner, prompt, report)
    elif tuner.trained.updates == 0:
        _check_margins(tuner, report)
    return report


def _check_ratio(tuner: Finetuner, prompt: str, report: CheckReport) -> None:
    policy, process, cfg = tuner.policy, tuner.process, tuner.config
    used = (tuner.weights > 0).nonzero().flatten()
    picks = torch.linspace(0, len(used) - 1, min(PROBES, len(used))).round().long()
    steps = used[picks].to(policy.device)
    rows = torch.arange(len(steps), device=policy.device)
    cond = take(policy.encode([prompt]), torch.zeros_like(rows))
    noise = generators(cfg.seed, CHECK, 0, range(len(steps)))
    storage = DTYPES[cfg.storage_dtype]
    like = torch.empty(0, device=policy.device)
    x_t = draw(policy.latent_shape, noise, like).to(storage)
    t = process.timesteps_at(steps)
    with torch.no_grad():
        out = policy.predict(x_t.float(), t, cond)
        mean = process.mean(out, x_t.float(), steps)
        step_noise = draw(policy.latent_shape, noise, like)
        x_prev = (mean + process.std_at(steps, mean) * step_noise).to(storage)
        stored = process.log_prob(x_prev, mean, steps)
        reference = process.mean(policy.predict_reference(x_t.float(), t, cond), x_t.float(), steps)
        gap = ((mean - reference) / process.std_at(steps, mean)).square().flatten(1).mean(1) / 2
    # Row by row with a graph: another batch size and path than the rollout's, as in training.
    worst = 0.0
    for i in range(len(steps)):
        table = x_t.new_zeros((process.num_steps + 1, 1, *policy.latent_shape))
        table[steps[i]], table[steps[i] + 1] = x_t[i], x_prev[i]
        chain = DenoisingChain(table, stored.new_zeros(1, process.num_steps))
        again = score_steps(
            policy.predict, process, chain, take(cond, rows[i : i + 1]), rows[:1], steps[i : i + 1]
        )
        worst = max(worst, float((again.detach() - stored[i]).abs()))
    report.metrics["check/ratio_error"] = worst
    report.metrics["check/reference_kl"] = float(gap.max())
    eps = None  # an objective of the user's own has no clip that we know of
    if isinstance(tuner.objective, PRDP):
        _, eps = tuner.objective.per_dim(int((tuner.weights > 0).sum()), policy_dimensions(policy))
    if eps is not None and not worst <= eps:
        raise InputError(
            f"re-scoring a step moves its log-prob by {worst:.1e} per dimension, more than the "
            f"clip {eps:.1e}: the clip would act on rounding. Raise --clip above {10 * worst:.0e}, "
            "or use fp32 (--dtype fp32 without --autocast)"
        )
    if eps is not None and worst > 0.2 * eps:
        report.warnings.append(
            f"re-scoring noise {worst:.1e} is {worst / eps:.0%} of the clip {eps:.1e}; "
            "a larger --clip or fp32 would be safer"
        )
    if tuner.trained.updates == 0 and not float(gap.max()) <= 1e-6:
        raise InputError(
            f"policy and reference differ before any update (KL {float(gap.max()):.1e} per "
            "dimension): was a LoRA loaded into the pipeline by hand? Pass it as --lora"
        )


def policy_dimensions(policy: ImagePolicy) -> int:
    """Scalars in one latent."""
    channels, height, width = policy.latent_shape
    return channels * height * width


@torch.no_grad()
def _check_guidance(policy: ImagePolicy, prompt: str, report: CheckReport) -> None:
    if not policy.family.guided(policy.guidance_scale):
        return
    cond = policy.encode([prompt])
    x = draw(policy.latent_shape, generators(0, CHECK, 1, range(1)), cond["text"].float())
    t = torch.full((1,), 500, device=policy.device)
    guided = policy.predict(x, t, cond)
    scale = policy.guidance_scale
    try:  # the same network, asked twice without guidance
        policy.guidance_scale = 1.0
        plain = policy.predict(x, t, cond)
        negative = {k.removesuffix("_negative"): v for k, v in cond.items() if "_negative" in k}
        uncond = policy.predict(x, t, cond | negative)
    finally:
        policy.guidance_scale = scale
    expected = policy.family.guide(plain, uncond, scale)
    error = float((guided - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    report.metrics["check/guidance_error"] = error
    if not error < 0.05:
        raise InputError(
            f"guidance is off by {error:.1%}: the guided prediction is not uncond + scale * "
            "(cond - uncond). Is the UNet patched or in an unusual dtype?"
        )


def _check_margins(tuner: PreferenceTuner, report: CheckReport) -> None:
    margin = abs(tuner.judge(2)["implicit_margin"])
    report.metrics["check/implicit_margin"] = margin
    if not margin <= 1e-6:
        raise InputError(
            f"policy and reference differ before any update (a margin of {margin:.1e}): was a LoRA "
            "loaded into the pipeline by hand? Pass it as --lora"
        )


def _check_ties(tuner: Finetuner, prompt: str, report: CheckReport) -> None:
    count = min(tuner.config.images_per_prompt, 4)
    drawn = tuner.draw([prompt], count, CHECK, 2, reference=False, path=False)
    images = tuner.policy.decode(drawn.chain.sample.float())
    group = torch.zeros(count, dtype=torch.long)
    said = tuner.ask("reward", Held(images, drawn.share, [prompt] * count), group)
    ties = tie_fraction(said.raw, group)
    report.metrics["check/tie_fraction"] = ties
    if ties > 0.5:
        report.warnings.append(
            f"{ties:.0%} of image pairs of one prompt have equal rewards and teach nothing; "
            "a denser reward or more --images-per-prompt helps"
        )
