"""The options of `genpol value`, by subject: those of robots (--data) and of images (--model)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from diffusion.recommended import TINY, recommended_texts
from diffusion.values.config import ImageValueConfig
from genpol.commands.dataset_options import DatasetRunOptions
from genpol.commands.wandb_options import WANDB
from offline.critics.value_config import ValueConfig
from offline.errors import InputError
from offline.ranges import Count, Few, NotNegative, Positive, Share, Size

# What a resumed run may have differently.
CHANGEABLE = (
    "data", "steps", "lr", "actor_lr", "log_every", "checkpoint_every", "keep_checkpoints",
    "device", "threads", "wandb", "batch",
)  # fmt: skip

# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "data", "data_weights", "model", "reward", "steps", "batch_size", "seed", "device",
        "output", "resume",
    ),
    "robots (--data)": (
        "success", "critic", "action_chunk", "discount", "obs_keys", "image_keys", "image_size",
        "ensemble", "hidden", "image_encoder", "language_model", "target_rate", "expectile",
        "scale", "random_shift", "actor_lr", "cql_alpha", "cql_actions", "cql_actor", "cql_backup",
    ),
    "images (--model): what it learns from": (
        "prompts", "lora", "unet", "num_prompts", "images_per_prompt", "other_prompts",
        "num_held_out", "states",
        "prompt_column", "held_out", "eval_prompts", "batch", "trust",
    ),
    "images (--model): sampling": (
        "num_inference_steps", "guidance_scale", "negative_prompt", "height", "width",
        "max_sequence_length", "sampler", "noise_level", "eta", "scheduler",
    ),
    "images (--model): loading and network": (
        "family", "variant", "model_config", "dtype", "channels", "blocks",
    ),
    "learning and run": (
        "lr", "memory_gb", "log_every", "checkpoint_every", "keep_checkpoints", "threads", *WANDB,
    ),
}  # fmt: skip
ROBOTS = (*GROUPS["robots (--data)"], "data", "data_weights")
IMAGES = (
    *GROUPS["images (--model): what it learns from"],
    *GROUPS["images (--model): sampling"],
    *GROUPS["images (--model): loading and network"],
    "model",
)
# Where the shared options have other defaults for images.
OF_IMAGES: dict[str, Any] = {
    name: getattr(ImageValueConfig(), name) for name in ("steps", "batch_size", "lr")
} | {"log_every": 200, "checkpoint_every": 200}
DEFAULT_TEXTS = recommended_texts() | {
    "prompts": f"{TINY['prompts']} for tiny; other models need it",
    "reward": f"sparse with --data; with --model {TINY['reward']} for tiny, others need it",
}
STEP_REWARDS = ("sparse", "dataset")


@dataclass(frozen=True, kw_only=True)
class Value(ValueConfig, DatasetRunOptions):
    """Learn a value: a critic from a dataset (--data), or one of images (--model).

    A critic (Cal-QL or IQL) is for `genpol steer`. The dataset should hold successes and failures;
    without successes there is nothing to learn.

    An image pipeline's value says what reward an unfinished image will have. It learns from the
    chains that the pipeline draws, whose weights stay as they are, and is for `genpol generate
    --value`. `genpol value --model tiny --help` shows the defaults for images.
    """

    model: str | None = None
    """Image pipeline: "tiny" or "tiny-flow" (shipped), a diffusers folder, a hub id, or a single
    .safetensors file. Default: none, a dataset of robots is learnt from."""
    reward: str | None = None  # type: ignore[assignment]
    """With --data the reward of an environment step: -1 until success (sparse), or the dataset's
    own (dataset). With --model the reward of finished images: a name, module:function,
    http://HOST:PORT, or an expression, as in `genpol finetune`."""
    batch_size: Count = 256
    """Chunks of the dataset, or latents of images, of each gradient step, at least 1."""
    lr: Positive = 3e-4
    """Learning rate of the critic or the image value, above 0."""
    memory_gb: Positive = 2.0
    """Memory in GiB, above 0. A larger dataset is streamed from its files, and of images fewer
    states of each chain are kept."""
    prompts: str | None = None
    """Prompts of the images: a file or a generator, as in `genpol finetune`."""
    lora: str | None = None
    """LoRA of the pipeline: a folder such as runs/x/lora, or a .safetensors file. Default: none."""
    unet: str | None = None
    """Folder of a fully fine-tuned UNet or transformer, such as runs/x/unet. Default: the
    pipeline's own."""
    num_prompts: Count = 192
    """Training prompts whose images are drawn, at least 1."""
    images_per_prompt: Annotated[int, Ge(2), Le(65_536)] = 8
    """Images drawn for each prompt, at least 2. The value learns to rank them."""
    other_prompts: Few = 8
    """Other training prompts that each image is judged against as well, at least 0. They teach what
    a prompt has to do with an image, and nothing is drawn for them. A reward that turns out not to
    look at prompts is asked once for each image."""
    num_held_out: Count = 16
    """Held-out prompts by which the value is judged, at least 1."""
    states: Annotated[int, Ge(2), Le(65_536)] = 12
    """States of each chain that are kept to learn from, at least 2; fewer where --memory-gb is too
    small."""
    prompt_column: str | None = None
    """Column or key that holds the prompt. Default: prompt, else the only one it may be, such as
    caption or text."""
    held_out: Annotated[float, Ge(0), Le(0.9)] = 0.1
    """Share of the prompts that is never learnt from, 0 to 0.9, chosen by a hash of the prompt. At
    0 the value is judged by training prompts."""
    eval_prompts: str | None = None
    """Held-out prompts of your own, in the same forms as --prompts. Default: the share of
    --held-out."""
    batch: Count = 64
    """Images drawn at a time, at least 1."""
    trust: bool = False
    """Load reward weights that are pickles (.pth). A pickle can run code when it is opened."""
    num_inference_steps: Count | None = None
    """Denoising steps, at least 1. The value also serves other numbers of steps."""
    guidance_scale: NotNegative | None = None
    """Classifier-free guidance, at least 0. 1 is none."""
    negative_prompt: str = ""
    """Negative prompt for guidance. Default: none."""
    height: Count | None = None
    """Height of the images in pixels. Default: the pipeline's."""
    width: Count | None = None
    """Width of the images in pixels. Default: the pipeline's."""
    max_sequence_length: Count | None = None
    """Tokens that prompts are padded or cut to, in pipelines that let one choose. Default: the
    pipeline's."""
    sampler: Literal["ode", "flow-sde", "dance-sde", "cps"] = "ode"
    """Sampler of flow models."""
    noise_level: NotNegative = 0.7
    """Noise level of the flow samplers other than the ODE, at least 0, and at most 1 for cps."""
    eta: Share = 1.0
    """Noise level of DDIM, 0 to 1."""
    scheduler: Literal["keep", "ddim", "ddpm"] = "keep"
    """Scheduler to sample with. "keep" replaces only schedulers whose steps have no density."""
    family: str | None = None
    """How a pipeline of your own class is called: module:Class of a family (docs/EXTENDING.md).
    Default: the family that the pipeline's class has."""
    variant: str | None = None
    """Variant of the weights' files, such as fp16 for *.fp16.safetensors. Default: the plain
    ones."""
    model_config: str | None = None
    """Folder or hub id with the configuration, and what else a single .safetensors file lacks.
    Default: the hub id that fits the file."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the pipeline's weights. The value's own are fp32."""
    channels: Size = 64
    """Channels of the value's network, at least 1."""
    blocks: Annotated[int, Ge(1), Le(256)] = 3
    """Residual blocks of the value's network, at least 1."""
    output: Path = Path("runs/value")
    """Run folder. The value is left in its value/, at every checkpoint."""


def defaults(given: Value) -> Value:
    """The defaults of the options that were not given beside `given`.

    With --resume they are the plain ones: the others are read from the run that goes on.
    """
    return Value(**OF_IMAGES) if given.model is not None and given.resume is None else Value()


def of_images(config: Value) -> bool:
    """Whether the options are of an image pipeline."""
    return config.model is not None


def require_one_world(config: Value) -> None:
    """Check that no options of robots are mixed with those of images.

    Raises:
        InputError: they are; names the first.
    """
    plain = Value()
    images = of_images(config)
    for name in ROBOTS if images else IMAGES:
        if getattr(config, name) == getattr(plain, name):
            continue
        flag = f"--{name.replace('_', '-')}"
        if images:
            raise InputError(
                f"{flag} is of a critic for robots (--data), and --model {config.model} asks for "
                f"the value of an image pipeline: leave out {flag} or --model"
            )
        raise InputError(
            f"{flag} is of the value of an image pipeline: add --model, or leave {flag} out to "
            "learn a critic from --data"
        )


def of_one_world(config: Value) -> dict[str, Any]:
    """The options as config.json has them: without those of the other world."""
    other = ROBOTS if of_images(config) else IMAGES
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in other}


def with_step_reward(config: Value) -> Value:
    """The options of a critic, whose reward is one of an environment step.

    Raises:
        InputError: it is none.
    """
    if config.reward is None:
        return replace(config, reward="sparse")
    if config.reward not in STEP_REWARDS:
        raise InputError(
            f"--reward expects one of {', '.join(STEP_REWARDS)} with --data; received "
            f'"{config.reward}". Rewards of images need --model'
        )
    return config
