"""`genpol clone`: behaviour-clone a diffusion, flow or Gaussian policy from a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genpol.commands.dataset_options import DatasetRunOptions
from genpol.commands.wandb_options import WANDB
from genpol.policies.cloning_config import CloneConfig

SHOWN = {"clone/loss": "loss", "clone/valid_loss": "held out"}
SUMMARY = {"data/episodes": "episodes", "data/chunks": "chunks", "train/steps": "steps"}
# What a resumed run may have differently, and why it may not have other steps.
CHANGEABLE = (
    "data", "lr", "log_every", "checkpoint_every", "keep_checkpoints", "device", "threads", "wandb",
)  # fmt: skip
FIXED = {"steps": "the learning rate of a clone falls to zero at --steps"}

# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "data", "data_weights", "policy", "steps", "batch_size", "action_chunk", "filter", "lr",
        "obs_keys", "image_keys", "seed", "device", "output", "resume",
    ),
    "dataset": ("success", "image_size"),
    "network": ("features", "width", "layers", "image_encoder", "language_model"),
    "sampling": ("denoising_steps", "sampler"),
    "learning": ("warmup", "weight_decay", "ema", "scale", "random_shift", "memory_gb"),
    "run": ("log_every", "checkpoint_every", "keep_checkpoints", "threads", *WANDB),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clone(CloneConfig, DatasetRunOptions):
    """Behaviour-clone a diffusion, flow or Gaussian policy from a dataset."""

    output: Path = Path("runs/clone")
    """Run folder. The policy is left in its policy/, at every checkpoint."""


def run(config: Clone) -> None:
    """Clone, or go on with a run; leaves policy/, checkpoints/, metrics.csv and summary.json.

    Raises:
        InputError: no such dataset, none of its episodes fit, or an option is out of range.
        Interrupted: a signal stopped it.
    """
    from genpol.runs.quiet import hush

    hush()
    from genpol.commands.dataset_run import dataset_run, given_or_restored

    config, stored = given_or_restored(config, "clone", CHANGEABLE, FIXED)
    config.check()
    from genpol.policies.cloning import Cloning

    found = dataset_run(
        config,
        stored,
        CloneConfig,
        Cloning,
        command="clone",
        folder="policy",
        shown=SHOWN,
        summary=SUMMARY,
        changeable=CHANGEABLE,
    )
    if found is None:
        return
    policy, _, folder = found
    print(f"{config.policy} policy of {policy.meta['episodes']} episodes in {folder}")
