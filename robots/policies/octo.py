"""Octo by duck type: `octo:DIR`.

A model has `create_tasks(texts=)`, `sample_actions(observations, tasks, rng=, ...)`,
`dataset_statistics`, `example_batch`, `config` and `load_pretrained(DIR)`, as Octo's `OctoModel`
does. It is asked for normalised actions; `spec` holds the statistics that un-normalise them, so
that a critic can be given them in the environment's units. Octo's own package runs on any JAX: the
older names that it uses are supplied while it runs, see `robots/policies/octo_names.py`.

Options after `?`: `model=package.module:Class` (another class with this interface), `dataset=NAME`
(whose statistics, where the checkpoint has several), `normalization=normal|bounds`, `window=1`,
`temperature=1.0`, and which of our observation keys feeds one of the model's, such as
`image_primary=agentview_image` or `proprio=eef_pos+gripper`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# JAX would take three quarters of a GPU's memory at once, which other networks compute on, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch
from torch import Generator, Tensor

from offline.errors import InputError, SpecError, did_you_mean
from offline.spec import ActionSpec
from offline.types import Obs
from robots.importing import import_object, one_line
from robots.policies.history import History
from robots.policies.octo_format import (
    NOT_INPUTS,
    SCALES,
    Observations,
    choose_statistics,
    constant_dimensions,
    make_spec,
    normalization_of,
    window_of,
)
from robots.policies.octo_head import Head, call, create_task, probe
from robots.policies.octo_names import old_names

OCTO = "octo.model.octo_model:OctoModel"
INSTALL = (
    "Octo is not installed: pip install git+https://github.com/octo-models/octo, or name a class "
    "with its interface: octo:DIR?model=package.module:Class"
)
SETTINGS = ("dataset", "normalization", "window", "temperature")


class OctoPolicy:
    """An Octo model behind `offline.types.Policy`; `wrap` and `load_octo` make one."""

    def __init__(
        self,
        model: Any,
        *,
        spec: ActionSpec,
        head: Head,
        observations: Observations,
        language: str,
        window: int,
        options: dict[str, Any],
    ) -> None:
        """`options` go to every `sample_actions`; the other arguments as in `wrap`."""
        self.model, self.spec, self.head, self.language = model, spec, head, language
        self._observations, self._options = observations, options
        self._history = History(window)
        self._constant = constant_dimensions(spec)
        self._tasks: dict[tuple[str, int], Any] = {}
        self.notes: list[str] = []
        if head.deterministic:
            self.notes.append(
                "the Octo model's head is deterministic (MSE or L1): all proposals are one action, "
                "there is nothing to rank unless candidates lie around it (--candidate-noise)"
            )

    def reset(self) -> None:
        """New episodes in every row."""
        self._history.reset()

    def commit(self, act: Tensor) -> None:
        """act (B, H', A) is being executed."""
        self._history.commit(act.shape[1])

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self._history.keep(rows)

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """Propose n chunks for each row: (B, n, H, A), normalised by `spec`.

        Raises:
            InputError: an observation is missing or has another shape than the model's, or the
                output is not finite.
        """
        ask, rows = self._question(obs)
        key = _jax_key(generator)
        if self.head.deterministic:
            act = np.repeat(ask(key)[None], n, axis=0)
        elif self.head.samples:
            act = ask(key, sample_shape=(n,))
        else:
            act = np.stack([ask(one) for one in jax.random.split(key, n)])
        return self._finish(act[:, :rows]).transpose(0, 1)

    def _question(self, obs: Obs) -> tuple[Callable[..., np.ndarray], int]:
        """(the model on this observation, as a function of the key; how many rows are real).

        Rows are filled up to a power of two, since the model is compiled anew for each number.
        """
        frames, real = self._history.frames(obs)
        inputs = [self._observations(frame) for frame in frames]
        rows = len(next(iter(inputs[0].values())))
        filled = 1 << max(rows - 1, 0).bit_length()
        index = np.minimum(np.arange(filled), rows - 1)
        batch = {key: np.stack([frame[key][index] for frame in inputs], 1) for key in inputs[0]}
        batch |= self._observations.masks(batch, np.tile(real, (filled, 1)))
        task = self._task(filled)

        def ask(key: Any, **options: Any) -> np.ndarray:
            with old_names():  # a batch of another size is traced anew
                act = call(self.model, batch, task, key, {**self._options, **options})
            return act[..., -1, :, :] if self.head.window else act

        return ask, rows

    def _finish(self, act: np.ndarray) -> Tensor:
        """(..., horizon, dim) of the head -> float32 (..., H, A)."""
        act = np.array(act[..., : self.spec.chunk, : self.spec.dim], np.float32)
        act[..., self._constant] = 0
        if not np.isfinite(act).all():
            raise InputError("the Octo model gave NaN or infinite actions: are its weights intact?")
        return torch.from_numpy(act)

    def _task(self, rows: int) -> Any:
        """The instruction as the model takes it, for each row; created once per instruction."""
        if (self.language, rows) not in self._tasks:
            if (self.language, 1) not in self._tasks:
                with old_names():
                    self._tasks[self.language, 1] = create_task(self.model, self.language)
            self._tasks[self.language, rows] = jax.tree_util.tree_map(
                lambda x: np.repeat(np.asarray(x), rows, axis=0), self._tasks[self.language, 1]
            )
        return self._tasks[self.language, rows]


class OctoPolicyWithMode(OctoPolicy):
    """An Octo model whose head can decode its most likely action."""

    def mode(self, obs: Obs, generator: Generator | None) -> Tensor:
        """One chunk for each row: (B, H, A), normalised by `spec`."""
        ask, rows = self._question(obs)
        options = {"argmax": True} if self.head.argmax else {}
        return self._finish(ask(_jax_key(generator), **options)[:rows])


def load_octo(
    folder: str | Path,
    *,
    env_spec: ActionSpec | None = None,
    action_chunk: int | None = None,
    language: str | None = None,
    options: dict[str, str] | None = None,
) -> OctoPolicy:
    """The policy in a folder that `save_pretrained` wrote; `options` as at the top of this file.

    Raises:
        InputError: Octo is missing, the folder is none of its own, or it does not fit.
    """
    options = dict(options or {})
    name = options.pop("model", OCTO)
    if "://" not in (path := str(folder)):
        path = os.path.abspath(path)  # orbax reads no other
    try:
        with old_names():
            model_class = import_object(name, what="an Octo model")
    except InputError as error:
        if name == OCTO and isinstance(error.__cause__, ImportError):
            raise InputError(f"{INSTALL} ({one_line(error.__cause__)})") from error
        raise
    try:
        with old_names():
            model = model_class.load_pretrained(path)
    except Exception as error:
        raise InputError(
            f"octo:{folder} does not load with {name}: {one_line(error)}; expected config.json, "
            "example_batch.msgpack, dataset_statistics.json and a folder for each saved step"
        ) from error
    return wrap(
        model, env_spec=env_spec, action_chunk=action_chunk, language=language, options=options
    )


def wrap(
    model: Any,
    *,
    env_spec: ActionSpec | None = None,
    action_chunk: int | None = None,
    language: str | None = None,
    options: dict[str, str] | None = None,
) -> OctoPolicy:
    """A model as a policy; it has `mode` exactly if its head can decode one.

    Args:
        model: has the interface at the top of this file.
        env_spec: the environment's bounds, names and gripper; the data's bounds when None.
        action_chunk: actions of a proposal to use; its whole horizon when None.
        language: the instruction.
        options: as at the top of this file, without `model`.

    Raises:
        InputError: an unknown option, no statistics, a head whose output has another shape, or
            actions that do not fit the environment.
    """
    options = dict(options or {})
    example = model.example_batch["observation"]
    known = [*SETTINGS, *(key for key in example if key not in NOT_INPUTS)]
    for key in options:
        if key not in known:
            raise InputError(f'octo:DIR has no option "{key}".{did_you_mean(key, known)}')
    statistics = choose_statistics(model.dataset_statistics, options.pop("dataset", None))
    normalization = options.pop("normalization", None) or normalization_of(model.config)
    if normalization not in SCALES:
        raise InputError(f'expected normalization=normal or bounds, received "{normalization}"')
    longest = window_of(example)
    window = _number("window", options.pop("window"), int) if "window" in options else None
    if window is not None and not 1 <= window <= longest:
        raise InputError(f"the model looks back at most {longest} steps, received window={window}")
    always: dict[str, Any] = {}  # given to every sample_actions
    if "temperature" in options:
        always["temperature"] = _number("temperature", options.pop("temperature"), float)
    observations = Observations(
        example, keys=options, proprio=statistics.get("proprio"), scale=SCALES[normalization]
    )
    keys = tuple(jax.random.split(jax.random.PRNGKey(0)))
    with old_names():
        head = probe(model, observations, language or "", window or longest, keys, always)
    dim = len(statistics["action"]["mean"])
    if head.dim < dim:
        raise SpecError(
            f"the head gives A={head.dim} dimensions, the statistics have {dim}: are they those "
            "of another dataset?"
        )
    if head.dim > dim:
        # The head pads its actions to the longest of its robots' and must be told how many count.
        # It reads that off the statistics' length; these change nothing else.
        always["unnormalization_statistics"] = {
            "mean": np.zeros(dim, np.float32),
            "std": np.ones(dim, np.float32),
        }
    spec = make_spec(
        statistics["action"],
        horizon=head.horizon,
        scale=SCALES[normalization],
        env_spec=env_spec,
        action_chunk=action_chunk,
    )
    if window is None:
        # Between decisions a longer chunk leaves steps unseen. Octo's loss covers every step of
        # its window, so it was trained to act with no history too.
        window = longest if spec.chunk == 1 else 1
    kind = OctoPolicyWithMode if head.argmax or head.deterministic else OctoPolicy
    return kind(
        model,
        spec=spec,
        head=head,
        observations=observations,
        language=language or "",
        window=window,
        options=always,
    )


def _jax_key(generator: Generator | None) -> Any:
    return jax.random.PRNGKey(int(torch.randint(2**31 - 1, (), generator=generator)))


def _number(name: str, text: Any, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(f'expected {name}=NUMBER, received "{text}"') from error
