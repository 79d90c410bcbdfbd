"""The options of `genpol generate`, by subject."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.recommended import recommended_texts
from offline.ranges import Count, Finite, NotNegative, Seed, Share, Size, Threads

# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "prompts", "num_prompts", "model", "lora", "images_per_prompt", "best_of", "reward",
        "seed", "device", "output", "family",
    ),
    "steering by a value": (
        "value", "value_weights", "num_candidates", "prune_at", "resample", "temperature",
        "report", "gold_reward", "guidance_control",
    ),
    "preferences": ("pairs_from", "num_images"),
    "sampling": (
        "num_inference_steps", "guidance_scale", "negative_prompt", "height", "width",
        "max_sequence_length", "sampler", "noise_level", "eta", "scheduler",
    ),
    "loading, memory and speed": (
        "prompt_column", "unet", "variant", "model_config", "dtype", "batch", "threads", "trust",
    ),
}  # fmt: skip
# What help shows for settings that the model decides.
DEFAULT_TEXTS = recommended_texts()


@dataclass(frozen=True)
class Generate:
    """Draw images from a pipeline (+ LoRA), optionally the best of K by a reward."""

    prompts: str
    """Prompts: a .txt, .jsonl, .json, .csv or .parquet file, a saved dataset's folder, or a
    generator such as world (then also --num-prompts)."""
    model: str = "tiny"
    """Pipeline: "tiny" or "tiny-flow" (shipped), a diffusers folder, a hub id, or a single
    .safetensors file."""
    variant: str | None = None
    """Variant of the weights' files, such as fp16 for *.fp16.safetensors. Default: the plain
    ones."""
    model_config: str | None = None
    """Folder or hub id with the configuration, and what else a single .safetensors file lacks.
    Default: the hub id that fits the file."""
    family: str | None = None
    """How a pipeline of your own class is called: module:Class of a family (docs/EXTENDING.md).
    Default: the family that the pipeline's class has."""
    lora: str | None = None
    """LoRA: a folder such as runs/x/lora, or a .safetensors file, in any usual layout. Default:
    none."""
    unet: str | None = None
    """Folder of a fully fine-tuned UNet or transformer, such as runs/x/unet. Default: the
    pipeline's own."""
    prompt_column: str | None = None
    """Column or key that holds the prompt. Default: prompt, else the only one it may be, such as
    caption or text."""
    num_prompts: Count | None = None
    """Number of prompts, at least 1: the first of a file, or held-out ones of a generator. With
    --pairs-from a generator gives any. Default: all of a file."""
    images_per_prompt: Count = 1
    """Images for each prompt, at least 1."""
    best_of: Count = 1
    """Candidates drawn for each image, at least 1. The one with the highest --reward is kept."""
    reward: str | None = None
    """Reward to record, and to choose by with --best-of. Default: none."""
    value: tuple[str, ...] = ()
    """Folders of `genpol value --model` that steer unfinished images: of --num-candidates chains
    the most valuable go on. Several are summed with --value-weights, each divided by its reward's
    standard deviation. The word reward asks --reward about the picture that each chain is heading
    for. Default: no steering."""
    value_weights: tuple[Finite, ...] = ()
    """Weight of each --value. A negative one avoids what that value rates highly. Default: 1
    each."""
    num_candidates: Size | None = None
    """Chains that --value chooses from for each image, at least 1. Default: 8."""
    prune_at: tuple[Share, ...] = ()
    """Shares of the denoising steps that remain when --value selects chains, falling, from 1
    (noise) to 0 (finished). After the last one chain is left: 8, 4, 2, 1. Default: .7 .4 .2, fewer
    where steps or candidates are few."""
    resample: bool = False
    """At --prune-at, copy chains in proportion to exp(increase of the value / temperature) instead
    of keeping the best. Needs a sampler with noise."""
    temperature: NotNegative | None = None
    """Temperature of --resample, in standard deviations of the reward, at least 0. Default: 0.3."""
    report: bool = False
    """Also draw one sample, the best of K by --reward, and guidance, at as many network evaluations
    as --value spent, and write report.html and arms.csv. This takes several times as long."""
    gold_reward: str | None = None
    """Rewards that only judge on the page of --report, separated by commas. Default: the gold
    checker on world prompts, else none."""
    guidance_control: str | None = None
    """Guidance scales on the page of --report, separated by commas, or "none". Default: 3,5 for
    tiny, 3,7.5 for other models."""
    pairs_from: str | None = None
    """Reward that makes a file of preferences: of the images of each prompt the one with the
    highest reward is chosen, the one with the lowest rejected. --output is then the file, such as
    pairs.jsonl. Default: none."""
    num_images: Count | None = None
    """Images drawn for each prompt with --pairs-from, at least 2. Default: 4."""
    seed: Seed = 0
    """Seed of the first candidate. Each further candidate adds 1. images.csv names the seed of each
    image."""
    num_inference_steps: Count | None = None
    """Denoising steps, at least 1."""
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
    """Sampler of flow models. Plain diffusers draws by the ODE, and fine-tuning by cps unless told
    otherwise."""
    noise_level: NotNegative = 0.7
    """Noise level of the flow samplers other than the ODE, at least 0, and at most 1 for cps."""
    eta: Share = 1.0
    """Noise level of DDIM, 0 to 1. Fine-tuning uses 1; 0 is deterministic."""
    scheduler: Literal["keep", "ddim", "ddpm"] = "keep"
    """Scheduler to sample with. "keep" is the one that fine-tuning keeps by default."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the weights."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1 or mps. Default: cuda where there is one, else
    cpu."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one for small
    networks, and for images or wide layers as many as a measurement at the start finds faster."""
    batch: Count = 64
    """Images drawn at a time, at least 1."""
    trust: bool = False
    """Load reward weights that are pickles (.pth). A pickle can run code when it is opened."""
    output: Path = Path("generated")
    """Folder for the PNGs and images.csv. With --pairs-from: the file of pairs, beside which the
    images get a folder of its name."""
