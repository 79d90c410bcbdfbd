"""Settings of a fine-tuning run; light to import, so the command line stays quick."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, Self, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

# Ranges; each number is held to its own by `check`.
Seed = Annotated[int, Ge(0), Lt(2**63)]
Count = Annotated[int, Ge(1), Lt(2**31)]
Positive = Annotated[float, Gt(0), Le(1e30)]
NotNegative = Annotated[float, Ge(0), Le(1e30)]


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of the fine-tuning loop. `None` takes the model's recommended value."""

    algorithm: str = "prdp"
    """Objective to train with: prdp, ddpo, grpo or rtb (they need steps with a density),
    prdp-forward, nft, awm or dpo (they need finished images), or module:name of a function that
    makes one of yours."""
    epochs: Count | None = None
    """Rounds of drawing images and updating, above 0."""
    seed: Seed = 0
    """Seed of everything random. A run is a function of its configuration."""
    prompts_per_epoch: Count | None = None
    """Prompts of each epoch (N), above 0."""
    images_per_prompt: Count | None = None
    """Images drawn for each prompt (B), at least 2, since the loss compares images of one
    prompt."""
    inner_steps: Count | None = None
    """Optimiser steps on each epoch's images (K), above 0."""
    beta: Positive | None = None
    """Reward temperature of PRDP, above 0, in the unit of --unit. A smaller one follows the reward
    harder."""
    clip: Positive | None = None
    """Half-width of PRDP's clip of each step's log-ratio around the old one, above 0, in the unit
    of --unit."""
    clipping: bool = True
    """Clip the log-ratios."""
    unit: Literal["per_dim", "nats"] = "per_dim"
    """Unit of --beta and --clip: means over steps and dimensions as published (per_dim), or nats of
    the joint density."""
    kl_weight: NotNegative | None = None
    """Weight of the KL from the reference in grpo, of the squared distance to the reference's
    output in nft, and of that to the average of the weights in awm, at least 0. Default: 1 for awm,
    else 0."""
    kl_target: Positive | None = None
    """KL from the reference to hold, in nats per image of kl/forward, above 0. Once an epoch it
    adapts --beta (prdp, rtb, prdp-forward) or --kl-weight (grpo, nft, awm), which give the start.
    Default: none, they stay."""
    kl_gain: Annotated[float, Gt(0), Lt(5)] = 1.0
    """How fast --kl-target adapts, above 0 and below 5: the constant changes by at most a fifth of
    this an epoch."""
    filter: Literal["best-worst"] | None = None
    """Images that are trained on: the best and the worst of each prompt. All are drawn, and
    advantages are those within all. Default: none, all of them."""
    filter_keep: Count = 2
    """Images that --filter keeps at each end, above 0, of every prompt."""
    normalise_ratio: bool = False
    """Give the log-ratios of every step the same mean and spread, in grpo."""
    draws: Count | None = None
    """Noise draws for each image in objectives on finished images, above 0. Default: 4."""
    loss_weight: Literal["simple", "elbo"] = "simple"
    """Weight of times in prdp-forward and awm: that of the training loss, or that of the evidence
    lower bound, with which --unit nats means nats."""
    mix: Annotated[float, Gt(0), Le(1)] = 0.1
    """Share of the new weights' output in the two outputs that nft compares, above 0, at most 1."""
    aggregate: Literal["mean", "sum"] = "mean"
    """How step log-ratios become one number: their mean, as in the supplement, or their sum, as in
    the main text."""
    step_weights: Literal["uniform", "skip_last", "balanced"] | None = None
    """Weight of each denoising step in the log-ratio: the same as published (uniform), none for the
    last step (skip_last), or inverse to how much the network's output moves the step (balanced)."""
    num_inference_steps: Count | None = None
    """Denoising steps (T), above 0."""
    guidance_scale: NotNegative | None = None
    """Classifier-free guidance in drawing, training and reference alike, at least 0. 1 is none."""
    negative_prompt: str = ""
    """Negative prompt for guidance. Default: none."""
    sampler: Literal["ode", "flow-sde", "dance-sde", "cps"] = "cps"
    """Sampler of flow models in drawing for training. Evaluations use the ODE."""
    noise_level: NotNegative = 0.7
    """Noise level of the flow samplers, at least 0, and at most 1 for cps."""
    sde_window: Count | None = None
    """Steps that draw noise and are trained on, at a place that each epoch draws; the others follow
    the ODE. Default: all steps."""
    height: Count | None = None
    """Height of the images in pixels. Default: the pipeline's."""
    width: Count | None = None
    """Width of the images in pixels. Default: the pipeline's."""
    train_resolution: Count | None = None
    """Shorter side, in pixels, of the images that are drawn for training; their shape is that of
    --height and --width, which evaluations keep. Default: the size of evaluations."""
    max_sequence_length: Count | None = None
    """Tokens that prompts are padded or cut to, in pipelines that let one choose. Default: the
    pipeline's."""
    eta: NotNegative = 1.0
    """Noise level of DDIM, above 0. At 0 its steps have no density to train on."""
    learning_rate: Positive | None = None
    """Learning rate of AdamW, above 0."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate over the run: the same throughout (constant), or falling towards 0 at the end
    of --epochs along a line (linear) or half a cosine (cosine)."""
    lr_warmup_steps: Annotated[int, Ge(0), Lt(2**31)] = 0
    """Optimiser steps over which the learning rate rises to its value first, at least 0."""
    optimizer: Literal["adamw", "adamw-fused", "adamw-8bit"] | None = None
    """Optimiser of the trained weights: AdamW (adamw), the same in one kernel (adamw-fused), or
    with moments in 8 bits (adamw-8bit), which needs bitsandbytes or torchao. Default: adamw-fused
    on cuda, else adamw."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of AdamW, at least 0."""
    max_grad_norm: Positive = 1.0
    """Norm that the gradient is clipped to, above 0."""
    train: Literal["lora", "full"] = "lora"
    """What is trained: a LoRA, or the full UNet."""
    reference_on: Literal["host", "device"] | None = None
    """Where full fine-tuning keeps the weights as they were: in the machine's memory, from where
    they change places with the trained ones (host), or beside them as a second network (device).
    Results are the same. Default: host for a GPU, else device."""
    lora_rank: Annotated[int, Ge(1), Le(65_536)] | None = None
    """Rank of a new LoRA, above 0."""
    lora_targets: str | None = None
    """Layers that get a new LoRA: attention projections (attention), or also feed-forward layers
    and convolutions (all), or ends of layers' names separated by commas (to_q,to_v), or a regex of
    whole names (.*attn2.*to_.)."""
    lora_alpha: Positive | None = None
    """Alpha of a new LoRA, above 0. Its output is multiplied by alpha / rank. Default: the rank."""
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of each LoRA layer's inputs that is left out for an epoch, at least 0 and below 1. An
    epoch's images are drawn and trained on without the same inputs, so that ratios stay exact.
    Evaluations leave none out."""
    lora_dora: bool = False
    """Make a new LoRA a DoRA, which also trains the length of each output's weights."""
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of the moving average of the trained weights, at least 0 and below 1. 0 keeps no
    average."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, for less memory and more time."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Bits of the linear layers of the frozen denoiser under a LoRA. 8bit needs torchao or
    bitsandbytes, 4bit bitsandbytes. The LoRA itself stays in fp32."""
    compile: bool = False
    """Compile the denoiser with torch.compile, for drawing, scoring and training. The first pass
    of each batch size takes minutes."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Whether UNets and autoencoders keep the channels of a pixel side by side in memory, which
    convolutions on cuda are faster with. auto is on for cuda, else off."""
    allow_tf32: Literal["auto", "on", "off"] = "auto"
    """Whether fp32 products and convolutions on cuda may round their inputs to TF32. auto is on
    where the networks compute in bf16 or fp16 anyway (--dtype, --autocast), else off, so that
    log-probs in fp32 stay exact."""
    autocast: Literal["bf16", "fp16"] | None = None
    """Mixed precision of the UNet. Default: none, the precision of --dtype."""
    storage_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision in which chains are stored. They are rounded before they are scored, so log-probs
    stay exact."""
    chains_on: Literal["host", "device"] | None = None
    """Where the chains of an epoch wait until they are trained on: in the machine's memory (host),
    or beside the networks (device). Default: host."""
    offload: str = "none"
    """Parts that wait in the machine's memory until they are called, separated by commas: encoders,
    vae, rewards, or all."""
    rollout_batch: Count | Literal["auto"] | None = None
    """Images drawn at a time, above 0, or auto, the most that fit into a GPU's memory."""
    micro_batch: Count | Literal["auto"] | None = None
    """Denoising steps of one forward and backward pass, above 0, or auto, the most that fit into a
    GPU's memory. It does not change the gradient."""
    eval_images: Count = 64
    """Images of each evaluation, one for each of that many held-out prompts, with the same seeds
    every time."""
    final_eval_images: Count | None = None
    """Images of the evaluations before and after training. Default: --eval-images."""
    eval_every: Count = 5
    """Epochs between evaluations, above 0."""

    def resolved(self, recommended: dict[str, Any]) -> Self:
        """A copy in which every None that has a recommended value takes it."""
        missing = {k: v for k, v in recommended.items() if getattr(self, k, v) is None}
        return replace(self, **missing)


_OF_THE_POLICY = (
    "guidance_scale", "negative_prompt", "train", "lora_rank", "lora_targets", "lora_alpha",
    "lora_dora", "height", "width", "train_resolution", "max_sequence_length",
)  # fmt: skip


def policy_settings(config: FinetuneConfig) -> dict[str, Any]:
    """The settings that `ImagePolicy` takes by the same names, wherever its networks are."""
    return {name: getattr(config, name) for name in _OF_THE_POLICY}


def check(config: FinetuneConfig) -> None:
    """Raise InputError on the first setting that cannot work.

    The command has said most of it in better words: `offline.option_check` reads the same ranges,
    but this package stands alone.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    from diffusion.errors import InputError

    hints = get_type_hints(FinetuneConfig, include_extras=True)
    wanted: dict[str, Any] = {f.name: (hints[f.name], ...) for f in fields(FinetuneConfig)}
    try:
        model = create_model("Settings", __config__=ConfigDict(allow_inf_nan=False), **wanted)
        model.model_validate({name: getattr(config, name) for name in wanted})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag, given = str(first["loc"][0]).replace("_", "-"), str(first["input"])[:80]
        raise InputError(f"--{flag}: {first['msg'].lower()}, received {given}") from None
    if config.images_per_prompt is not None and config.images_per_prompt < 2:
        raise InputError(
            "--images-per-prompt 1 leaves nothing to compare: the loss is over pairs of images of "
            "one prompt; use 2 or more (8 is usual)"
        )
    if config.train == "full":
        for name in ("lora_alpha", "lora_dropout", "lora_dora"):
            if getattr(config, name):
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is of a LoRA, and --train full trains none")
    elif config.reference_on is not None:
        raise InputError(
            "--reference-on is of --train full: the reference of a LoRA is the network without it, "
            "which takes no memory of its own"
        )
    _check_speed(config)
    if config.epochs is not None and config.inner_steps is not None:
        steps = config.epochs * config.inner_steps
        if config.lr_warmup_steps > steps:
            raise InputError(
                f"--lr-warmup-steps {config.lr_warmup_steps} is more than the {steps} optimiser "
                "steps of the run (epochs times inner steps): the learning rate would never be "
                "reached; pass fewer"
            )
    if config.filter is not None:
        _check_filter(config)


def _check_speed(config: FinetuneConfig) -> None:
    from diffusion.errors import InputError

    if config.compile and config.lora_dropout:
        raise InputError(
            "--lora-dropout leaves out other inputs in each epoch, which a compiled network does "
            "not see: leave out --compile or --lora-dropout"
        )
    if config.quantization != "none":
        flag = f"--quantization {config.quantization}"
        if config.train == "full":
            raise InputError(
                f"{flag} is of a frozen denoiser, and --train full trains it: train a LoRA "
                "(--train lora), or leave the weights whole (--quantization none)"
            )
        if config.lora_dora:
            raise InputError(
                f"{flag} goes with a plain LoRA: a DoRA reads the lengths of whole weights. Leave "
                "out --lora-dora or --quantization"
            )


def _check_filter(config: FinetuneConfig) -> None:
    from diffusion.errors import InputError

    drawn, keep = config.images_per_prompt, config.filter_keep
    if config.algorithm == "dpo":
        raise InputError("--filter is for images that are drawn, and dpo trains on pairs of files")
    if drawn is not None and 2 * keep >= drawn:
        raise InputError(
            f"--filter-keep {keep} keeps {2 * keep} images of each prompt, but only {drawn} are "
            f"drawn, so nothing is filtered; keep fewer, or raise --images-per-prompt above "
            f"{2 * keep}"
        )
