"""`genpol value`: train a critic offline, which steers any policy of the same task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genpol.commands.dataset_options import DatasetRunOptions
from genpol.commands.wandb_options import WANDB
from offline.critics.value_config import ValueConfig

SHOWN = {"critic/td_loss": "td", "critic/q_data": "q"}
SUMMARY = {"data/successes": "successes", "data/failures": "failures", "train/steps": "steps"}
# What a resumed run may have differently.
CHANGEABLE = (
    "data", "steps", "lr", "actor_lr", "log_every", "checkpoint_every", "keep_checkpoints",
    "device", "threads", "wandb",
)  # fmt: skip

# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "data", "critic", "steps", "batch_size", "action_chunk", "discount", "reward", "obs_keys",
        "image_keys", "seed", "device", "output", "resume",
    ),
    "network": ("ensemble", "hidden", "image_encoder", "language_model"),
    "learning": ("lr", "target_rate", "expectile", "scale", "random_shift", "memory_gb"),
    "Cal-QL": ("actor_lr", "cql_alpha", "cql_actions", "cql_actor", "cql_backup"),
    "run": ("log_every", "checkpoint_every", "keep_checkpoints", "threads", *WANDB),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Value(ValueConfig, DatasetRunOptions):
    """Train a critic (Cal-QL or IQL) on a dataset, for `genpol steer`.

    The dataset should hold successes and failures; without successes there is nothing to learn.
    """

    output: Path = Path("runs/value")
    """Run folder. The value function is left in its value/, at every checkpoint."""


def run(config: Value) -> None:
    """Train, or go on with a run; leaves value/, checkpoints/, metrics.csv and summary.json.

    Raises:
        InputError: no such dataset, one without successes, or an option out of range.
        Interrupted: a signal stopped it.
    """
    from genpol.runs.quiet import hush

    hush()
    from genpol.commands.dataset_run import dataset_run, given_or_restored

    config, stored = given_or_restored(config, "value", CHANGEABLE)
    config.check()
    from offline.critics.train_value import ValueTraining

    found = dataset_run(
        config,
        stored,
        ValueConfig,
        ValueTraining,
        command="value",
        folder="value",
        shown=SHOWN,
        summary=SUMMARY,
        changeable=CHANGEABLE,
    )
    if found is None:
        return
    _, last, folder = found
    auc, rank = (
        last.get(f"value/{name}", float("nan")) for name in ("auc_success", "rank_correlation")
    )
    print(
        f"held out: AUC of success {auc:.3f}, rank correlation with the return {rank:.3f}; "
        f"value function in {folder}"
    )
