"""`genpol clone`: behaviour-clone a diffusion, flow or Gaussian policy from a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genpol.commands.dataset_options import DatasetRunOptions
from genpol.policies.cloning_config import CloneConfig

SHOWN = {"clone/loss": "loss", "clone/valid_loss": "held out"}
SUMMARY = {"data/episodes": "episodes", "data/chunks": "chunks", "train/steps": "steps"}


@dataclass(frozen=True, kw_only=True)
class Clone(CloneConfig, DatasetRunOptions):
    """Behaviour-clone a diffusion, flow or Gaussian policy from a dataset."""

    output: Path = Path("runs/clone")
    """Run folder; the policy is in its policy/."""


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
