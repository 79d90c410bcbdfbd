"""Someone else's policy behind an openpi websocket server, as a `Policy`.

Such a server sends its metadata once, then answers each observation (a map of arrays) with
{"actions": (H, A)} in the environment's units, or with a text frame that holds its traceback. It
answers one observation with one chunk, so K proposals are K requests, over a few connections at
once. Our own server announces more in its metadata (`robots/serving/serve.py`), and is asked once.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.errors import InputError, SpecError, shown
from offline.spec import ActionSpec
from offline.types import Obs
from robots.serving.connection import Answers, Link, gather
from robots.serving.observations import kind_of, numbers
from robots.serving.wire import one_line, pack


class UnknownActions(InputError):
    """Nobody says what a server's actions are."""


class RemotePolicy:
    """A policy server's proposals; make it with `connect`.

    Attributes:
        spec: `env_spec`, for chunks of the server's length.
        metadata: what the server said of itself on connecting.
        answers: of the latest `sample`, for each row the server's n answers as they came, in the
            order of the proposals.
    """

    def __init__(
        self,
        link: Link,
        *,
        env_spec: ActionSpec | None,
        prompt: str | None,
        rename: Mapping[str, str],
        parallel: int,
        chunk: int | None,
        deadline: float | None,
    ) -> None:
        self.metadata = link.metadata
        self._features, self._keys, announced = _announced(link)
        self.spec = _spec(env_spec, announced, chunk, link.url)
        self._adopt_chunk = chunk is None and announced is None
        self.answers: list[Answers] = []
        self._prompt, self._rename, self._deadline = prompt, dict(rename), deadline
        self._first = link
        self._links = [link, *(link.another() for _ in range(parallel - 1))]
        # Idle connections for servers that do not tell us apart; last in, first out, so that
        # no more are opened than are needed at once.
        self._idle: queue.LifoQueue[Link] = queue.LifoQueue()
        for idle in reversed(self._links):
            self._idle.put(idle)
        # Our own server keeps an episode's state per connection: one for each row of the batch.
        self._rows: list[Link] = [link]
        self._reset = True
        self._alone = False  # whether rows are asked about as if nothing came before or after
        self._executed: np.ndarray | None = None
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="remote-policy")

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        env_spec: ActionSpec | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        prompt: str | None = None,
        parallel: int = 8,
        rename: Mapping[str, str] | None = None,
        chunk: int | None = None,
        deadline: float | None = None,
    ) -> RemotePolicy:
        """Connect and read the server's metadata.

        Args:
            url: ws://host:port or wss://...
            env_spec: bounds and names of the actions; may be left out for a `genpol serve`.
            api_key: sent as openpi does, `Authorization: Api-Key ...`; default
                $GENPOL_UPSTREAM_API_KEY.
            timeout: seconds to wait for the connection, and for each answer. A server that
                answers one request at a time needs `parallel` times its own time.
            prompt: the instruction, sent as "prompt".
            parallel: requests under way at once.
            rename: our observation keys -> the server's.
            chunk: actions (H) to use of each answer, which may be longer. Default: all of them;
                `spec.chunk` is then known after the first answer, or from a `genpol serve` at once.
            deadline: seconds after which `sample` returns the proposals that have arrived, at
                least one.

        Raises:
            InputError: not reachable, not an openpi server, API key refused, or no `env_spec`.
        """
        if parallel < 1:
            raise InputError(f"a server is asked over at least 1 connection, not {parallel}")
        if api_key is None:
            api_key = os.environ.get("GENPOL_UPSTREAM_API_KEY")
        link = Link(url, api_key=api_key, timeout=timeout)
        link.open()
        try:
            return cls(
                link,
                env_spec=env_spec,
                prompt=prompt,
                rename=rename or {},
                parallel=parallel,
                chunk=chunk,
                deadline=deadline,
            )
        except BaseException:
            link.close()
            raise

    # -- Policy

    def reset(self) -> None:
        """New episodes; a server that keeps no state is not told."""
        self._reset, self._executed = True, None

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """Ask for n chunks for each row: (B, n, H, A), normalised by `spec`; see `propose`."""
        rows = len(next(iter(obs.values())))
        return self.propose([self._request(obs, row) for row in range(rows)], n, generator)

    def sample_anew(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """As `reset` and `sample`, for states of no episode: (B, n, H, A).

        However many there are, they share a few connections, which `sample` cannot: it keeps one
        for each row of our own server's.
        """
        self._alone = True
        try:
            return self.sample(obs, n, generator)
        finally:
            self._alone = False
            self.reset()

    def commit(self, act: Tensor) -> None:
        """Remember what is executed; told with the next request to a server that keeps state."""
        self._executed = self.spec.unnormalize(act.detach().float().cpu()).numpy()

    def keep(self, rows: Tensor) -> None:
        """Only these rows of the batch go on."""
        kept = [int(row) for row in rows]
        if "num_samples" not in self._features:
            return
        for row, link in enumerate(self._rows):
            if row not in kept and link is not self._first:
                link.close()
        self._rows = [self._rows[row] for row in kept]
        if self._executed is not None:
            self._executed = self._executed[kept]

    def interrupt(self) -> None:
        """From any thread: what is asked at present fails at once, and so does all that follows."""
        for link in (*self._rows, *self._links):
            link.end()

    def close(self) -> None:
        """Close every connection, and do not wait for answers that are still due."""
        if self._idle.qsize() < len(self._links):
            self.interrupt()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for link in (*self._rows, *self._links):
            link.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- requests

    def propose(
        self,
        requests: Sequence[dict[str, Any]],
        n: int,
        generator: Generator | None,
        *,
        since: float | None = None,
    ) -> Tensor:
        """Send whole messages, one for each row, and collect n chunks for each.

        Args:
            requests: the messages.
            n: chunks for each.
            generator: draws the seeds, for a server that takes them.
            since: when the time of a deadline began (`perf_counter`); default now.

        Returns:
            (B, n, H, A) normalised by `spec`; fewer than n where a deadline cut them short.

        Raises:
            InputError: a request failed (with the server's words); an answer has no actions, or
                of another shape, or not finite ones.
        """
        if "num_samples" in self._features:
            self.answers = self._ask_ours(requests, n, generator)
        else:
            deadline = self._deadline
            if deadline is not None and since is not None:
                deadline = max(0.0, since + deadline - perf_counter())
            self.answers = self._ask_each(requests, n, deadline)
        raw = [[self._actions(answer) for answer in row] for row in self.answers]
        lengths = {len(chunk) for row in raw for chunk in row}
        if self._adopt_chunk:
            self.spec = self.spec.with_chunk(min(lengths))
            self._adopt_chunk = False
        if min(lengths) < self.spec.chunk:
            raise InputError(
                f"{self._first.url} answered a chunk of H={min(lengths)} actions, expected at "
                f"least {self.spec.chunk}: train the critic with --action-chunk {min(lengths)}"
            )
        stacked = np.stack([np.stack([chunk[: self.spec.chunk] for chunk in row]) for row in raw])
        return self.spec.normalize(torch.from_numpy(stacked))

    def _request(self, obs: Obs, row: int) -> dict[str, Any]:
        request: dict[str, Any] = {}
        for key, values in obs.items():
            # Other servers embed the prompt themselves.
            if key != "language" if self._keys is None else key in self._keys:
                request[self._rename.get(key, key)] = values[row].detach().cpu().numpy()
        if self._prompt is not None:
            request["prompt"] = self._prompt
        return request

    def _ask_each(
        self, requests: Sequence[dict[str, Any]], n: int, deadline: float | None
    ) -> list[Answers]:
        """n requests for each row, over any connection."""
        frames = [pack(request) for request in requests]
        futures = [[self._threads.submit(self._exchange, f) for _ in range(n)] for f in frames]
        return gather(futures, deadline)

    def _ask_ours(
        self, requests: Sequence[dict[str, Any]], n: int, generator: Generator | None
    ) -> list[Answers]:
        """One request for each row, over the row's own connection, or any if it stands alone."""
        alone, executed = self._alone, None if self._alone else self._executed
        while not alone and len(self._rows) < len(requests):
            self._rows.append(self._first.another())
        futures = []
        for row, request in enumerate(requests):
            extra: dict[str, Any] = {"num_samples": n, "reset": alone or self._reset}
            if executed is not None and len(executed) == len(requests):
                extra["executed"] = executed[row]
            if generator is not None:
                extra["seed"] = int(torch.randint(2**62, (), generator=generator))
            frame = pack({**request, **extra})
            exchange = self._exchange if alone else self._rows[row].exchange
            futures.append([self._threads.submit(exchange, frame)])
        answers = [row[0] for row in gather(futures, None)]
        self._reset, self._executed = False, None
        for answer in answers:
            actions = answer.get("actions")
            if not isinstance(actions, np.ndarray) or actions.ndim != 3 or len(actions) != n:
                raise InputError(
                    f"{self._first.url} answered no (n, H, A) actions to a request for {n}; it "
                    f"answered {shown(getattr(actions, 'shape', answer))}"
                )
        return [[answer | {"actions": act} for act in answer["actions"]] for answer in answers]

    def _exchange(self, frame: bytes) -> dict[str, Any]:
        link = self._idle.get()
        try:
            return link.exchange(frame)
        finally:
            self._idle.put(link)

    def _actions(self, answer: dict[str, Any]) -> np.ndarray:
        """The chunk in an answer: (H, A) float32, in the environment's units."""
        url, size = self._first.url, self.spec.dim
        actions = answer.get("actions", answer.get("action"))
        if actions is None:
            raise InputError(f'{url} answered without "actions"; it has {shown(sorted(answer))}')
        found = numbers(actions)
        if found is None:
            raise InputError(f"{url} answered actions that are no numbers: {kind_of(actions)}")
        found = found[None] if found.ndim == 1 else found
        if found.ndim != 2 or found.shape[1] != size or not len(found):
            raise SpecError(
                f"{url} answered actions of shape {shown(found.shape)}, expected (H, A={size}): is "
                "it a policy for another robot?"
            )
        with np.errstate(over="ignore"):  # becomes infinite
            raw = found.astype(np.float32)
        if not np.isfinite(raw).all():
            raise InputError(f"{url} answered NaN or infinite actions")
        return raw


def _announced(link: Link) -> tuple[frozenset[str], frozenset[str] | None, ActionSpec | None]:
    """What a `genpol serve` adds to its metadata: features, observation keys, spec."""
    ours = link.metadata.get("genpol", {})
    try:
        shapes, spec = ours.get("obs_shapes"), ours.get("spec")
        return (
            frozenset(ours.get("features", ())),
            frozenset(shapes) if shapes is not None else None,
            _sound(ActionSpec.from_dict(spec)) if spec is not None else None,
        )
    except Exception as error:  # anything may stand there
        raise InputError(
            f"{link.url} sent metadata of another version: {one_line(error, 200)}"
        ) from error


def _sound(spec: ActionSpec) -> ActionSpec:
    """The same spec; raises whatever it raises where actions cannot be normalised by it."""
    there = spec.normalize(spec.clip(spec.unnormalize(torch.zeros(1, spec.dim))))
    if type(spec.chunk) is not int or not torch.isfinite(there).all():
        raise ValueError("actions cannot be normalised by its spec")
    return spec


def _spec(
    env_spec: ActionSpec | None, announced: ActionSpec | None, chunk: int | None, url: str
) -> ActionSpec:
    """The spec to normalise by: the caller's, or the server's own."""
    spec = env_spec or announced
    if spec is None:
        raise UnknownActions(
            f"{url} does not say what its actions are: name the environment (--env)"
        )
    if announced is not None and announced.dim != spec.dim:
        raise SpecError(f"{url} serves actions with A={announced.dim}, expected A={spec.dim}")
    length = chunk or (announced or spec).chunk
    if announced is not None and announced.chunk < length:
        raise SpecError(f"{url} serves chunks of H={announced.chunk}, expected {length}")
    return spec.with_chunk(length)
