"""Train a behaviour-cloning policy with robomimic itself, on an HDF5 file of `genpol collect`.

robomimic's configuration, dataset, algorithm and training epoch; the checkpoint is one that its
own loader reads. Low-dimensional observations only.

    OMP_NUM_THREADS=1 PYTHONPATH=. python scripts/robomimic_train.py \
        --data demos.hdf5 --output runs/rnn_gmm/model.pth --steps 3000 --seed 0

Beside the checkpoint is written model.json: the actions' chunk and specification, how it was made.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader

from offline.errors import InputError, did_you_mean
from robots.datasets.hdf5 import open_hdf5
from robots.policies.robomimic import import_robomimic

ALGORITHMS: dict[str, dict[str, Any]] = {  # name -> what differs from robomimic's own settings
    "bc": {},
    "bc_gaussian": {"gaussian.enabled": True},
    "bc_gmm": {"gmm.enabled": True},
    "bc_vae": {"vae.enabled": True},
    "bc_rnn": {"rnn.enabled": True},
    "bc_rnn_gmm": {"rnn.enabled": True, "gmm.enabled": True},
    "bc_transformer": {"transformer.enabled": True},
    "bc_transformer_gmm": {"transformer.enabled": True, "gmm.enabled": True},
}
SEQUENCE = 10  # robomimic's horizon for RNNs and transformers
EPOCH = 500  # steps between lines of progress


def train(
    data: str | Path,
    output: str | Path,
    *,
    steps: int,
    seed: int,
    algorithm: str = "bc_rnn_gmm",
    filter_key: str | None = None,
    hidden: int = 256,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Train on every one-dimensional observation but "language", and save a checkpoint.

    Args:
        data: robomimic-format HDF5, its actions in [-1, 1].
        output: the checkpoint, such as model.pth.
        steps: gradient steps; the learning rate falls to a tenth for the last fifth.
        seed: of weights, batches and noise; sets the global seeds, as robomimic does.
        algorithm: one of `ALGORITHMS`.
        filter_key: name of the mask whose episodes are trained on; all episodes when None. A file
            without a mask "success" is given one: the successes of "train", or of all.
        hidden: width of RNN, transformer or MLP (robomimic: 400, 512, 1024).
        batch_size: sequences of `SEQUENCE` steps, or single steps without RNN and transformer
            (robomimic: 100).
        learning_rate: robomimic's is 1e-4, for 100 times as many steps.
        log: called with a line of progress every `EPOCH` steps.

    Returns:
        loss (mean of the last epoch), ms_per_step and seconds.

    Raises:
        InputError: robomimic is missing, or a name, file or mask is wrong.
    """
    if algorithm not in ALGORITHMS:
        raise InputError(
            f'expected an algorithm, received "{algorithm}".{did_you_mean(algorithm, ALGORITHMS)}'
        )
    data, output = Path(data), Path(output)
    robomimic = import_robomimic()
    file_utils, train_utils = robomimic.utils.file_utils, robomimic.utils.train_utils
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    np.random.seed(seed)
    with _masked(data, filter_key, output) as file, contextlib.redirect_stdout(io.StringIO()):
        obs_keys, sidecar = _describe(file, filter_key)
        config = _config(
            robomimic, file, obs_keys, steps, seed, algorithm, filter_key, hidden, learning_rate
        )
        robomimic.utils.obs_utils.initialize_obs_utils_with_config(config)
        env_meta = file_utils.get_env_metadata_from_dataset(str(file))
        shape_meta = file_utils.get_shape_metadata_from_dataset(str(file), all_obs_keys=obs_keys)
        dataset, _ = train_utils.load_data_for_training(config, obs_keys=obs_keys)
        stats = None if "transformer" in algorithm else _normalise(dataset)
        algo = robomimic.algo.algo_factory(
            algo_name=config.algo_name,
            config=config,
            obs_key_shapes=shape_meta["all_shapes"],
            ac_dim=shape_meta["ac_dim"],
            device=torch.device("cpu"),
        )
    loader = DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        shuffle=True,
        drop_last=True,
    )
    started, done, epoch = time.perf_counter(), 0, 0
    while done < steps:
        count, epoch = min(EPOCH, steps - done), epoch + 1
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bar
            metrics = train_utils.run_epoch(algo, loader, epoch=epoch, num_steps=count)
        algo.on_epoch_end(epoch)
        done += count
        log(f"{algorithm} step {done}/{steps} loss {metrics['Loss']:.3f}")
    seconds = time.perf_counter() - started
    result = {
        "loss": metrics["Loss"],
        "ms_per_step": 1000 * seconds / steps,
        "seconds": seconds,
    }

    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    with contextlib.redirect_stdout(io.StringIO()):
        with config.values_unlocked():
            config.train.hdf5_normalize_obs, config.train.data = stats is not None, str(data)
        train_utils.save_model(algo, config, env_meta, shape_meta, str(temporary), stats)
    made = {"algorithm": algorithm, "steps": steps, "seed": seed, "filter_key": filter_key}
    sidecar |= {"trained": made | {"data": data.name, "robomimic": robomimic.__version__} | result}
    beside = output.with_suffix(".json")
    beside.with_name(f".{beside.name}.{os.getpid()}").write_text(json.dumps(sidecar, indent=2))
    os.replace(beside.with_name(f".{beside.name}.{os.getpid()}"), beside)
    os.replace(temporary, output)
    return result


@contextlib.contextmanager
def _masked(data: Path, filter_key: str | None, output: Path) -> Iterator[Path]:
    """The file, or while inside, a copy of it that has the mask "success"."""
    with open_hdf5(data) as file:
        masks, names = file.get("mask", {}), list(file.get("data", {}))
        complete = filter_key != "success" or "success" in masks
        if "train" in masks:
            names = [name.decode() for name in masks["train"][()]]
        successes = [n for n in names if not complete and file["data"][n].attrs.get("success")]
    if complete:
        yield data
        return
    if not successes:
        raise InputError(f"{data} says of none of its episodes that it succeeded")
    copy = output.with_name(f".{output.name}.{os.getpid()}.hdf5")
    try:
        shutil.copyfile(data, copy)
        with h5py.File(copy, "r+") as file:
            file["mask/success"] = np.array(successes, dtype="S")
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _normalise(dataset: Any) -> dict[str, Any]:
    """Normalise the observations of a cached dataset by robomimic's own statistics of it.

    `hdf5_normalize_obs` of robomimic 0.3 stops at an assertion for sequences of more than one
    step; its policies in rollouts do normalise, except where frames are stacked.
    """
    with dataset.hdf5_file_opened():
        stats = dataset.normalize_obs()
    for item in dataset.getitem_cache:
        for key, value in item["obs"].items():
            item["obs"][key] = ((value - stats[key]["mean"]) / stats[key]["std"]).astype(np.float32)
    return stats


def _describe(data: Path, filter_key: str | None) -> tuple[list[str], dict[str, Any]]:
    """The observation keys to train on, and what is written beside the checkpoint."""
    with open_hdf5(data) as file:
        if "data" not in file or not len(file["data"]):
            raise InputError(f"{data} has no episodes in a group data: is it robomimic's format?")
        if filter_key is not None and filter_key not in file.get("mask", {}):
            hint = did_you_mean(filter_key, file.get("mask", {}))
            raise InputError(f'{data} has no mask "{filter_key}".{hint}')
        group = file["data"]
        demos = group if filter_key is None else [k.decode() for k in file["mask"][filter_key][()]]
        low, high = (
            np.stack([bound(group[name]["actions"][()], 0) for name in demos])
            for bound in (np.min, np.max)
        )
        if low.min() < -1.001 or high.max() > 1.001:
            raise InputError(
                f"robomimic's networks give actions in [-1, 1], those in {data} reach "
                f"{low.min():g} to {high.max():g}: normalise them first"
            )
        first = next(iter(group.values()))["obs"]
        keys = sorted(key for key in first if first[key].ndim == 2 and key != "language")
        if not keys:
            raise InputError(f"{data} has no one-dimensional observations; images are not trained")
        chunk = int(group.attrs.get("action_chunk", 1))
        spec = group.attrs.get("unchunked_action_spec" if chunk > 1 else "action_spec")
    sidecar: dict[str, Any] = {"action_chunk": chunk}
    if spec is not None:
        sidecar["action_spec"] = json.loads(spec)
    return keys, sidecar


def _config(
    robomimic: Any,
    data: Path,
    obs_keys: list[str],
    steps: int,
    seed: int,
    algorithm: str,
    filter_key: str | None,
    hidden: int,
    learning_rate: float,
) -> Any:
    """robomimic's configuration of behaviour cloning, changed where `ALGORITHMS` says."""
    config = robomimic.config.config_factory("bc")
    recurrent, stacked = "rnn" in algorithm, "transformer" in algorithm
    epochs = -(-steps // EPOCH)
    settings = {
        "train.data": str(data),
        "train.seed": seed,
        "train.cuda": False,
        "train.num_epochs": epochs,
        "train.hdf5_filter_key": filter_key,
        "train.dataset_keys": ["actions"],
        "train.seq_length": SEQUENCE if recurrent else 1,
        "train.frame_stack": SEQUENCE if stacked else 1,
        "experiment.rollout.enabled": False,
        "observation.modalities.obs.low_dim": obs_keys,
        "algo.optim_params.policy.learning_rate.initial": learning_rate,
        "algo.optim_params.policy.learning_rate.epoch_schedule": [max(1, round(0.8 * epochs))],
        "algo.actor_layer_dims": [] if recurrent else [hidden, hidden],
        "algo.rnn.horizon": SEQUENCE,
        "algo.rnn.hidden_dim": hidden,
        "algo.transformer.context_length": SEQUENCE,
        "algo.transformer.embed_dim": hidden,
        "algo.transformer.num_layers": 2,
        "algo.transformer.num_heads": 4,
    }
    settings |= {f"algo.{name}": value for name, value in ALGORITHMS[algorithm].items()}
    with config.values_unlocked():
        for name, value in settings.items():
            *path, last = name.split(".")
            section = config
            for part in path:
                section = section[part]
            section[last] = value
    config.lock()
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="bc_rnn_gmm")
    parser.add_argument("--filter-key")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(1)
    try:
        result = train(arguments.pop("data"), arguments.pop("output"), **arguments, log=print)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(json.dumps(result))


if __name__ == "__main__":
    main()
