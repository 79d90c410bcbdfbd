"""`genpol clone`: behaviour-clone a diffusion, flow or Gaussian policy from a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genpol.commands.dataset_options import DatasetRunOptions
from genpol.policies.cloning_config import CloneConfig

SHOWN = {"clone/loss": "loss", "clone/valid_loss": "held out"}
SUMMARY = {"data/episodes": "episodes", "data/chunks": "chunks", "train/steps": "steps"}

# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "data", "policy", "steps", "batch_size", "action_chunk", "filter", "lr", "obs_keys",
        "image_keys", "seed", "device", "output",
    ),
    "network": ("features", "width", "layers", "image_encoder", "language_model"),
    "sampling": ("denoising_steps", "sampler"),
    "learning": ("warmup", "weight_decay", "ema", "scale", "random_shift", "memory_gb"),
    "run": ("log_every", "wandb"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clone(CloneConfig, DatasetRunOptions):
    """Behaviour-clone a diffusion, flow or Gaussian policy from a dataset."""

    output: Path = Path("runs/clone")
    """Run folder. The policy is left in its policy/."""


def run(config: Clone) -> None:
    """Clone, and leave policy/, metrics.csv and summary.json in the run folder.

    Raises:
        InputError: no such dataset, none of its episodes fit, or an option is out of range.
    """
    from genpol.runs.quiet import hush

    hush()
    config.check()
    from genpol.commands.dataset_run import dataset_run
    from genpol.policies.cloning import clone

    policy, _, folder = dataset_run(
        config, CloneConfig, clone, command="clone", folder="policy", shown=SHOWN, summary=SUMMARY
    )
    print(f"{config.policy} policy of {policy.meta['episodes']} episodes in {folder}")
