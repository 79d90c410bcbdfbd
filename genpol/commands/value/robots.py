"""A critic from a dataset of robots (`genpol value --data`)."""

from __future__ import annotations

from typing import Any

from genpol.commands.dataset_run import dataset_run
from genpol.commands.value.options import CHANGEABLE, Value, of_one_world
from offline.critics.value_config import ValueConfig

SHOWN = {"critic/td_loss": "td", "critic/q_data": "q"}
SUMMARY = {"data/successes": "successes", "data/failures": "failures", "train/steps": "steps"}


def train_critic(config: Value, stored: dict[str, Any]) -> None:
    """Train, or go on with a run; leaves value/, checkpoints/, metrics.csv and summary.json.

    Raises:
        InputError: no such dataset, one without successes, or an option out of range.
        Interrupted: a signal stopped it.
    """
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
        changeable=[name for name in CHANGEABLE if name in of_one_world(config)],
        document=of_one_world(config),
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
