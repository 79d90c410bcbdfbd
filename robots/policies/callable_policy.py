"""Any callable as a policy: `module:name`, in the environment's units.

    function(obs) -> (A,) or (H, A)                        obs of one row: {"state": (D,), ...}
    class or factory without arguments -> such a callable, which may keep state and have reset()
    batched(obs, n, generator) -> (B, n, A) or (B, n, H, A)   obs (B, ...); numpy.random.Generator

The last form is recognised by its three parameters or by an attribute `batched = True`. Functions
that draw random numbers take a parameter `generator` (numpy), or use the global generators of
numpy, torch and random, which are seeded for each decision and restored afterwards.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.draws import globally_seeded
from offline.errors import InputError
from offline.spec import ActionSpec
from offline.types import Obs
from robots.importing import import_object, one_line

Row = dict[str, np.ndarray]


class CallablePolicy:
    """A user's callable behind `offline.types.Policy`.

    An object with `reset` keeps state. Each row of the batch then has its own copy, and each of
    the K proposals is made by a copy of that, so that proposing changes nothing; `commit` goes on
    with the copy whose proposal was chosen. Torch networks are shared by all copies, so state
    belongs outside of them.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        env_spec: ActionSpec,
        action_chunk: int | None = None,
        name: str = "",
    ) -> None:
        self.name = name or getattr(function, "__qualname__", type(function).__qualname__)
        chunk = action_chunk or int(getattr(function, "action_chunk", 1))
        self.spec = env_spec.with_chunk(chunk)
        self._function: Any = function
        self._batched = _is_batched(function)
        self._stateful = not self._batched and callable(getattr(function, "reset", None))
        self._takes_generator = "generator" in _parameters(function)
        self._states: list[Any] = []  # one copy of the callable for each row
        self._proposed: list[list[tuple[np.ndarray, Any]]] = []  # rows x K of (action, copy)

    @classmethod
    def load(
        cls, text: str, *, env_spec: ActionSpec | None, action_chunk: int | None = None
    ) -> CallablePolicy:
        """The policy that "module:name" names.

        Raises:
            InputError: it cannot be imported or made, or is not callable; no environment is given.
        """
        found = import_object(text, what="a policy")
        if env_spec is None:
            raise InputError(f'policy "{text}" acts in an environment\'s units: name one, --env')
        made = inspect.isclass(found) or (inspect.isfunction(found) and not _parameters(found))
        if made:
            try:
                found = found()
            except Exception as error:
                raise InputError(f'policy "{text}" could not be made: {one_line(error)}') from error
        if not callable(found):
            raise InputError(f'policy "{text}" is a {type(found).__name__}, expected a callable')
        return cls(found, env_spec=env_spec, action_chunk=action_chunk, name=text)

    def reset(self) -> None:
        """New episodes in every row."""
        self._states, self._proposed = [], []
        if self._batched and callable(getattr(self._function, "reset", None)):
            self._function.reset()

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """Propose n chunks for each row: (B, n, H, A), normalised by `spec`.

        Raises:
            InputError: names the callable: it failed, or returned a wrong shape, NaN or infinity.
        """
        arrays = {key: value.detach().cpu().numpy() for key, value in obs.items()}
        rows = len(next(iter(arrays.values())))
        with _seeded(generator) as rng:
            if self._batched:
                raw = self._batch(arrays, rows, n, rng)
            else:
                raw = self._rows(arrays, rows, n, rng)
        return self.spec.normalize(torch.from_numpy(raw))

    def commit(self, act: Tensor) -> None:
        """Go on with the state behind the proposal that is being executed: act (B, H', A)."""
        if not self._proposed:
            return
        chosen = self.spec.unnormalize(act.detach().cpu()).numpy()
        for row, proposals in enumerate(self._proposed):
            steps = chosen[row].shape[0]
            apart = [np.abs(raw[:steps] - chosen[row]).max() for raw, _ in proposals]
            self._states[row] = proposals[int(np.argmin(apart))][1]
        self._proposed = []

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self._states = [self._states[i] for i in rows.tolist()] if self._states else []
        self._proposed = []
        if self._batched and callable(getattr(self._function, "keep", None)):
            self._function.keep(rows.numpy())

    def _batch(self, obs: Row, rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
        raw = self._numbers(self._call(self._function, obs, n, rng))
        if raw.ndim == 3:
            raw = raw[:, :, None]
        self._check(raw, (rows, n), "(B, n, H, A)")
        return raw[:, :, : self.spec.chunk]

    def _rows(self, obs: Row, rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
        if self._stateful and len(self._states) != rows:
            self._states = [self._copy(self._function) for _ in range(rows)]
            for state in self._states:
                state.reset()
        self._proposed = [[] for _ in range(rows)] if self._stateful else []
        extra = {"generator": rng} if self._takes_generator else {}
        raw = np.empty((rows, n, self.spec.chunk, self.spec.dim), np.float32)
        for row in range(rows):
            for k in range(n):
                function = self._copy(self._states[row]) if self._stateful else self._function
                mine = {key: value[row].copy() for key, value in obs.items()}
                chunk = self._numbers(self._call(function, mine, **extra))
                chunk = chunk[None] if chunk.ndim == 1 else chunk
                self._check(chunk, (), "(A,) or (H, A)")
                raw[row, k] = chunk[: self.spec.chunk]
                if self._stateful:
                    self._proposed[row].append((raw[row, k], function))
        return raw

    def _call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except InputError:
            raise
        except Exception as error:
            keys = ", ".join(arguments[0])
            raise InputError(
                f"policy {self.name} failed: {one_line(error)} (it was given obs with {keys})"
            ) from error

    def _numbers(self, result: Any) -> np.ndarray:
        if isinstance(result, Tensor):
            result = result.detach().cpu().numpy()
        try:
            return np.asarray(result, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"policy {self.name} returned a {type(result).__name__}, expected an array of "
                "numbers"
            ) from error

    def _check(self, raw: np.ndarray, leading: tuple[int, ...], expected: str) -> None:
        size = len(leading)
        chunk, dim = self.spec.chunk, self.spec.dim
        if raw.ndim != size + 2 or raw.shape[:size] != leading or raw.shape[-1] != dim:
            wanted = f"{expected} with A={dim}" + (
                f", B={leading[0]}, n={leading[1]}" if leading else ""
            )
            raise InputError(f"policy {self.name} returned shape {raw.shape}, expected {wanted}")
        if raw.shape[-2] < chunk:
            raise InputError(
                f"policy {self.name} returned {raw.shape[-2]} action(s), expected chunks of "
                f"{chunk}: return (H, A) with H >= {chunk}, or use --action-chunk {raw.shape[-2]}"
            )
        if not np.isfinite(raw).all():
            raise InputError(f"policy {self.name} returned NaN or infinite actions")

    def _copy(self, state: Any) -> Any:
        try:
            return copy.deepcopy(state, _networks_of(state))
        except Exception as error:
            raise InputError(
                f"policy {self.name} keeps state (it has reset) but cannot be copied: "
                f"{one_line(error)}; write it as batched(obs, n, generator) instead"
            ) from error


def _networks_of(state: Any) -> dict[int, Any]:
    """deepcopy's memo that shares networks instead of copying their weights."""
    values = list(vars(state).values()) if hasattr(state, "__dict__") else []
    shared = [value for value in values if isinstance(value, torch.nn.Module)]
    if isinstance(state, torch.nn.Module):
        shared += [*state.children(), *state.parameters(recurse=False)]
    return {id(module): module for module in shared}


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # builtins have none
        return ["obs"]


def _is_batched(function: Callable[..., Any]) -> bool:
    marked = getattr(function, "batched", None)
    return bool(marked) if marked is not None else len(_parameters(function)) == 3


@contextmanager
def _seeded(generator: Generator | None) -> Iterator[np.random.Generator]:
    """A numpy generator, and the global ones seeded alike; they are restored afterwards."""
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    before, before_python = np.random.get_state(), random.getstate()
    try:
        with globally_seeded(seed):
            np.random.seed(seed)
            random.seed(seed)
            yield np.random.default_rng(seed)
    finally:
        np.random.set_state(before)
        random.setstate(before_python)
