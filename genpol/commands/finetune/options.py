"""The options of `genpol finetune`, by subject, and what a resumed run may change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusion.config import FinetuneConfig, Positive
from diffusion.recommended import TINY, recommended_texts
from genpol.commands.wandb_options import WANDB, WandbOptions
from offline.ranges import Count, Decay, Few, Threads

# What runs were that do not know of these options.
BEFORE: dict[str, Any] = {"optimizer": "adamw", "channels_last": "off"}
# What a resumed run may go on with differently; the last three keep it from diverging again.
RESUMABLE = (
    "epochs", "best_of_k", "guidance_control", "wandb", "device", "threads", "export",
    "reward_ranks", "rollout_batch", "micro_batch", "chains_on", "offload", "reference_on",
    "compile", "stop_patience", "learning_rate", "max_grad_norm", "autocast",
    "plan", "json", "device_memory", "processes",
)  # fmt: skip
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "model", "reward", "prompts", "pairs", "epochs",
        "prompts_per_epoch", "images_per_prompt",
        "learning_rate", "beta", "lora", "seed", "device", "output", "resume", "trust",
    ),
    "model and reward": ("family", "variant", "model_config", "combine"),
    "objective": (
        "algorithm", "inner_steps", "clip", "clipping", "unit", "aggregate", "step_weights",
        "kl_weight", "normalise_ratio", "draws", "loss_weight", "mix",
    ),
    "against over-optimisation": (
        "kl_target", "kl_gain", "filter", "filter_keep", "stop_when", "stop_patience",
    ),
    "sampling": (
        "num_inference_steps", "guidance_scale", "negative_prompt", "eta", "scheduler",
        "sampler", "noise_level", "sde_window", "height", "width", "train_resolution",
        "max_sequence_length",
    ),
    "weights and optimiser": (
        "train", "lora_rank", "lora_targets", "lora_alpha", "lora_dropout", "lora_dora", "export",
        "optimizer", "lr_schedule", "lr_warmup_steps", "weight_decay", "max_grad_norm", "ema",
    ),
    "prompts": ("prompt_column", "pair_columns", "held_out", "eval_prompts"),
    "memory and precision": (
        "rollout_batch", "micro_batch", "gradient_checkpointing", "dtype", "autocast",
        "storage_dtype", "chains_on", "offload", "reference_on", "quantization",
    ),
    "speed": ("compile", "channels_last", "allow_tf32"),
    "evaluation": (
        "gold_reward", "eval_images", "final_eval_images", "eval_every", "best_of_k",
        "guidance_control",
    ),
    "run": ("checkpoint_every", "keep_checkpoints", "threads", "reward_ranks", *WANDB),
    "a plan of memory": ("plan", "json", "device_memory", "processes"),
}  # fmt: skip
# What help shows for settings that the model decides.
_RECOMMENDED = recommended_texts()
DEFAULT_TEXTS = (
    _RECOMMENDED
    | {name: f"{TINY[name]} for tiny; other models need it" for name in ("reward", "prompts")}
    | {name: f"{_RECOMMENDED[name]}; auto on a GPU" for name in ("rollout_batch", "micro_batch")}
)


@dataclass(frozen=True)
class Finetune(FinetuneConfig, WandbOptions):
    """Fine-tune an image pipeline on a reward, or on pairs of images."""

    model: str | None = None
    """Pipeline to train: "tiny" or "tiny-flow" (shipped), a diffusers folder, a hub id, or a single
    .safetensors file. Default: tiny."""
    variant: str | None = None
    """Variant of the weights' files, such as fp16 for *.fp16.safetensors. Default: the plain
    ones."""
    model_config: str | None = None
    """Folder or hub id with the configuration, and what else a single .safetensors file lacks.
    Default: the hub id that fits the file."""
    family: str | None = None
    """How a pipeline of your own class is called: module:Class of a family (docs/EXTENDING.md).
    Default: the family that the pipeline's class has."""
    reward: str | None = None
    """Reward: a name, module:function, http://HOST:PORT, or an expression such as
    "10*clip+2*hpsv2" or "min(clip,hpsv2)"."""
    combine: Literal["raw", "normalised"] = "raw"
    """What the expression of several rewards is computed of: the rewards as they are (raw), or each
    less the mean of its prompt's images and in their standard deviations, so that the scale of none
    decides (normalised). Evaluations are raw."""
    gold_reward: str | None = None
    """Rewards that are only evaluated, separated by commas. Default: the gold checker on world
    prompts, else none."""
    stop_when: str | None = None
    """Stop once an evaluated reward falls: "gold falls", "NAME falls" with a name of --gold-reward,
    or "heldout falls" for the training reward. The weights left are those of the best evaluation,
    whether or not the run stops. Default: run all epochs and leave the last weights."""
    stop_patience: Count = 2
    """Evaluations in a row, every --eval-every epochs, at which the reward of --stop-when must be
    below its best by more than the standard error, above 0."""
    prompts: str | None = None
    """Prompts: a .txt, .jsonl, .json, .csv or .parquet file, a saved dataset's folder, or a
    generator such as world."""
    pairs: str | None = None
    """Preferences to train on with --algorithm dpo, in place of drawing and --reward: a .jsonl with
    prompt, chosen and rejected (paths of images), a .parquet, or a folder of these. An epoch is
    --prompts-per-epoch pairs. Default: none."""
    pair_columns: str | None = None
    """Columns of --pairs: PROMPT,CHOSEN,REJECTED. Default: found by their names."""
    prompt_column: str | None = None
    """Column or key that holds the prompt. Default: prompt, else the only one it may be, such as
    caption or text."""
    held_out: Decay = 0.1
    """Share of the prompts that is never trained on, at least 0 and below 1, chosen by a hash of
    the prompt. At 0, evaluations use training prompts."""
    eval_prompts: str | None = None
    """Held-out prompts of your own, in the same forms as --prompts. Default: the share of
    --held-out."""
    lora: str | None = None
    """LoRA to start from: a folder or .safetensors file in any usual layout. Its rank, alpha and
    layers are kept, and it is the reference as well. Default: none, a new LoRA."""
    export: Literal["kohya"] | None = None
    """Layout that the LoRA is also written in: kohya is the one that user interfaces for drawing
    read (lora/lora_kohya.safetensors). Default: none, diffusers' layout alone."""
    best_of_k: Few | None = None
    """Images that the untrained pipeline draws of each held-out prompt after training. The reward
    chooses the best one, which is reported beside the result. 0 draws none. Default: as many as
    cost the reward calls of training, at most 16 for tiny and 4 for other models."""
    guidance_control: str | None = None
    """Guidance scales at which the untrained pipeline is reported beside the result, separated by
    commas, or "none". Default: 3,5 for tiny, 3,7.5 for other models."""
    scheduler: Literal["keep", "ddim", "ddpm"] = "keep"
    """Scheduler to sample with. "keep" replaces only schedulers whose steps have no density."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the frozen weights. Trained weights are always fp32."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1 or mps. Default: cuda where there is one, else
    cpu."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one for small
    networks, and for images or wide layers as many as a measurement at the start finds faster."""
    reward_ranks: str | None = None
    """Processes that ask the rewards, of a run that accelerate launch or torchrun has started in
    several: numbers from 0, separated by commas, such as 0,4. Others load no reward models.
    Default: all."""
    output: Path = Path("runs/finetune")
    """Run folder. The weights are left in its lora/ or unet/."""
    resume: Path | None = None
    """Run folder to go on with, bit for bit. --epochs and --stop-patience may be raised. Where
    memory runs out, --rollout-batch, --micro-batch, --chains-on and --offload may be others.
    --learning-rate, --max-grad-norm and --autocast may be others, where the run diverged. Default:
    a new run."""
    checkpoint_every: Count = 5
    """Epochs between checkpoints. Ctrl-C and SIGTERM also leave one."""
    keep_checkpoints: Count = 2
    """Checkpoints that are kept."""
    plan: bool = False
    """Print what the run will need of the device's memory and the machine's, and end. Nothing is
    loaded: configurations and the headers of files are read."""
    json: bool = False
    """Print the --plan as JSON."""
    device_memory: Positive | None = None
    """Memory of the device in GB that --plan compares with, above 0. Default: that of the device
    here."""
    processes: Count | None = None
    """Processes of the run, for --plan: it counts what each of them needs. Default: as many as the
    launcher started, else 1."""
    trust: bool = False
    """Load reward weights that are pickles (.pth). A pickle can run code when it is opened."""
