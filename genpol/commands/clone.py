"""`genpol clone`: behaviour-clone a diffusion, flow or Gaussian policy from a dataset."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from genpol.policies.cloning_config import CloneConfig

if TYPE_CHECKING:
    from genpol.policies.policy import ChunkPolicy


@dataclass(frozen=True)
class Clone(CloneConfig):
    """Behaviour-clone a diffusion, flow or Gaussian policy from a dataset."""

    data: str = ""
    """Dataset: a .hdf5 file, a LeRobot folder, or minari:NAME; see `genpol data info`."""
    language_model: str | None = None
    """Show the policy the instruction: "shipped", or a folder of a sentence encoder."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default cuda where there is one."""
    output: Path = Path("runs/clone")
    """Run folder; the policy is in its policy/."""
    wandb: Literal["online", "offline", "disabled"] | None = None
    """Where wandb logs; default online when logged in, else offline."""


def run(config: Clone) -> None:
    """Clone, and leave policy/, metrics.csv and summary.json in the run folder.

    Raises:
        InputError: no such dataset, none of its episodes fit, or an option is out of range.
    """
    from genpol.runs.quiet import hush

    hush()
    from offline.errors import InputError

    if not config.data:
        raise InputError("--data is needed: a dataset of demonstrations")
    config.check()
    train(config)


def train(config: Clone) -> ChunkPolicy:
    """The whole run; returns the policy, which is also saved."""
    from genpol.policies.cloning import clone
    from genpol.runs.device import pick_device
    from genpol.runs.files import disk_errors
    from genpol.training.run_folder import training_run
    from offline.networks.language import embedder
    from robots.datasets.open import open_dataset

    device = pick_device(config.device)
    language = embedder(config.language_model) if config.language_model else None
    episodes = open_dataset(config.data)
    settings = CloneConfig(**{f.name: getattr(config, f.name) for f in fields(CloneConfig)})
    shown = {"clone/loss": "loss", "clone/valid_loss": "held out"}
    with training_run(config, "clone", shown) as training:
        policy = clone(
            episodes,
            settings,
            log=training.log,
            device=device,
            language=language,
            stop=training.stopped,
        )
        policy.meta |= {"data": config.data, "language_model": config.language_model}
        folder = training.run.folder / "policy"
        with disk_errors(f"cannot write {folder}", "Free some space or pass another --output"):
            policy.save(folder)
        counts = {f"data/{key}": policy.meta[key] for key in ("episodes", "chunks")}
        training.run.summary({**training.last, **counts, "train/steps": policy.meta["steps"]})
    if training.stopped():
        print(f"stopped after step {policy.meta['steps']} of {config.steps}")
    print(f"{config.policy} policy of {policy.meta['episodes']} episodes in {folder}")
    return policy
