"""Records the conversations of a server: own thread for the journals, own process for the rest.

A decision is handed over to the thread that appends it to its conversation's journal, and is
answered once it is written, or after `PATIENCE`, whichever comes first: a disk that stalls slows
nothing. What waits to be written is bounded; beyond the bound the observation of a decision is
dropped, and counted, while what was decided and executed is kept.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from offline.errors import InputError
from offline.files import disk_errors, write_beside
from offline.spec import ActionSpec
from robots.datasets.recorded import FOLDER, FORMAT, is_recording, read_recording
from robots.recording.converter import GIVE_UP, Converter
from robots.recording.features import Arrays, split_message
from robots.recording.film import has_encoder
from robots.recording.journal import Journal
from robots.serving.told import Decided, Told

logger = logging.getLogger(__name__)
PATIENCE = 0.003  # seconds that an answer waits for its record
WAITING = 256 << 20  # bytes of observations that wait to be written
LIGHT = 10_000  # records that wait, observations or not; beyond it the episode is cut
LONGEST = 5_000  # decisions of an episode; then it is cut, and the next begins


class Recorder:
    """Of one server into one folder; `listener` gives each client's.

    Args:
        folder: made if need be; an earlier recording goes on.
        spec: of the actions, in the environment's units.
        fps: actions per second of the robot.
        env: name of the environment, where there is one.
        served: what recording.json says of the server.
        limit: bytes of the folder; when they are used up, no further episode is recorded.
        rename: the robot's keys -> the data's.
        patience: seconds that an answer waits for its record at most.
        lock: makes sure that no other server records there, and returns what lets go again.

    Attributes:
        counts: "decisions", "episodes", "dropped" (observations) and "refused" (episodes) so far.

    Raises:
        InputError: a folder that holds something else, another robot's recording, or is read-only.
    """

    def __init__(
        self,
        folder: str | Path,
        spec: ActionSpec,
        fps: float,
        *,
        env: str | None = None,
        served: Mapping[str, Any] | None = None,
        limit: int = 50 << 30,
        rename: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
        lock: Callable[[Path], Callable[[], None]] = lambda folder: lambda: None,
    ) -> None:
        self.path = Path(folder).expanduser()
        self.counts: Counter[str] = Counter()
        self._spec, self.rename, self._limit = spec, dict(rename or {}), limit
        self.patience = patience
        self._release = self._prepare(fps, env, served or {}, lock)
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0  # bytes
        self._said: set[str] = set()
        self.pictures = has_encoder()
        """Whether pictures are recorded."""
        self._closed = False
        self._open: set[Conversation] = set()
        self._converter = Converter(self.path, self._hear)
        self._size = sum(e.stat().st_size for e in self.path.rglob("*") if e.is_file())
        left = sorted(str(path) for path in self._journals.glob("*.journal"))
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()
        for journal in left:
            self.submit(partial(self._converter.convert, journal))

    def listener(self) -> Conversation:
        """Follows one client's conversation."""
        conversation = Conversation(self)
        with self._lock:
            self._open.add(conversation)
        return conversation

    def close(self, patience: float = GIVE_UP) -> None:
        """End all episodes and wait for them to be converted, for `patience` seconds at most.

        What is not converted by then is by the next server that records here.
        """
        if self._closed:
            return
        for conversation in list(self._open):
            conversation.close()
        self._closed = True
        self._queue.put(None)
        self._thread.join(patience)
        if left := self._converter.close(patience):
            logger.warning(
                "%d episodes are not converted yet: the next server that records in %s does it",
                left,
                self.path,
            )
        self._release()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def summary(self) -> str:
        """What was recorded, in a line."""
        counts = self.counts
        line = f"recorded {counts['episodes']} episodes, {counts['decisions']} decisions"
        for name, what in (
            ("dropped", "observations dropped"),
            ("refused", "episodes refused"),
            ("unrecorded", "decisions not recorded"),
        ):
            line += f", {counts[name]} {what}" if counts[name] else ""
        return f"{line} in {self.path}"

    # -- of the conversations

    def submit(self, work: Callable[[], None]) -> None:
        """Have the recorder's thread do something."""
        self._queue.put(work)

    def take_room(self, size: int) -> bool:
        """Whether so many bytes of an observation may wait; `give_room` once they are written."""
        with self._lock:
            if self._waiting + size > WAITING:
                self.counts["dropped"] += 1
                return False
            self._waiting += size
            return True

    def give_room(self, size: int) -> None:
        with self._lock:
            self._waiting -= size

    @property
    def behind(self) -> bool:
        """Whether so much waits that episodes are cut."""
        return self._queue.qsize() > LIGHT

    def has_space(self) -> bool:
        """Whether the folder may grow; called in the recorder's thread."""
        if self._size < self._limit:
            return True
        self.say(
            "full",
            f"{self.path} has reached its limit of {self._limit / 2**30:g} GiB: nothing more is "
            "recorded",
        )
        return False

    def split(self, message: Mapping[str, Any]) -> tuple[Arrays, Arrays, str, list[str]]:
        """See `split_message`; pictures are left out where they cannot be encoded."""
        vectors, pictures, prompt, left = split_message(message, self.rename)
        for key, values in vectors.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                self.say(
                    f"odd {key}", f'"{key}" has NaN or infinite values: they are recorded as 0'
                )
        if pictures and not self.pictures:
            self.say(
                "encoder",
                'pictures are not recorded, which needs imageio-ffmpeg: pip install "genpol[sim]"',
            )
            pictures = {}
        return vectors, pictures, prompt, left

    def grown(self, size: int) -> None:
        self._size += size

    def say(self, kind: str, line: str) -> None:
        """A warning, once for each kind."""
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("%s", line)

    def open_journal(self, name: str) -> Journal:
        return Journal(self._journals / f"{name}.journal")

    def forget(self, conversation: Conversation) -> None:
        with self._lock:
            self._open.discard(conversation)

    def finish(self, journal: Path) -> None:
        """Have a journal converted; called in the recorder's thread."""
        self._converter.convert(str(journal))

    def _hear(self, said: dict[str, Any]) -> None:
        """What became of a journal."""
        self._size += said.get("size", 0)
        if said.get("episode") is not None:
            self.counts["episodes"] += 1
        if "failed" in said:
            self.counts["refused"] += 1
            logger.warning("an episode is not in the recording: %s", said["why"])

    # -- the folder

    @property
    def _journals(self) -> Path:
        return self.path / FOLDER / "open"

    def _prepare(
        self, fps: float, env: str | None, served: Mapping[str, Any],
        lock: Callable[[Path], Callable[[], None]],
    ) -> Callable[[], None]:  # fmt: skip
        if find_spec("pyarrow") is None:
            raise InputError('recording needs pyarrow: pip install "genpol[data]"')
        spec = self._spec.with_chunk(1).to_dict()
        if is_recording(self.path):
            before = read_recording(self.path)
            there = ActionSpec.from_dict(before.spec, f'"{self.path}": recording.json')
            if there.dim != self._spec.dim or before.fps != fps:
                raise InputError(
                    f'"{self.path}" records A={there.dim} actions at {before.fps:g} per second, '
                    f"this server A={self._spec.dim} at {fps:g}: pass another --record"
                )
            spec, env = before.spec, before.env or env
        elif self.path.exists() and any(self.path.iterdir()):
            raise InputError(f'"{self.path}" holds something else: pass another --record')
        said = {"format": FORMAT, "spec": spec, "fps": fps, "env": env, "served": dict(served)}
        with disk_errors(f'cannot record in "{self.path}"', "Pass another --record"):
            self._journals.mkdir(parents=True, exist_ok=True)
            release = lock(self.path / FOLDER)
            write_beside(self.path / FOLDER / "recording.json", json.dumps(said, indent=4).encode())
        return release

    # -- its thread

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception as error:  # a full disk must not end the service
                self.counts["unrecorded"] += 1
                self.say(type(error).__name__, f"cannot record: {' '.join(str(error).split())}")


class Conversation:
    """A client's, as a series of episodes; a `robots.serving.told.Listener`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._episode: _Open | None = None
        self._late: threading.Event | None = None  # a record that an answer did not wait for

    def told(self, told: Told, message: dict[str, Any]) -> None:
        """See `robots.serving.told.Listener`."""
        if self._episode is None:
            return
        record: dict[str, Any] = {
            "kind": "told",
            "executed": told.executed,
            "intervention": told.intervention,
            "reward": told.reward,
            "success": told.success,
            "obs": None,
        }
        ends = told.ends
        records, size = [record], 0
        if ends and message and not told.reset:  # an observation after the last action
            vectors, pictures, _, _ = self._recorder.split(message)
            size = _size(vectors, pictures)
            if self._recorder.take_room(size):
                record["obs"] = vectors
                records = [*_images(pictures), record]
            else:
                size = 0
        self._episode.write(records, size)
        if ends:
            self._end(_why(told))

    def decided(self, message: dict[str, Any], decided: Decided) -> None:
        """See `robots.serving.told.Listener`; waits a moment for the record to be written."""
        recorder = self._recorder
        if self._episode is not None and (
            self._episode.decisions >= LONGEST or self._episode.failed or recorder.behind
        ):
            self._end("cut")
        if self._episode is None:
            if recorder.behind:
                recorder.counts["unrecorded"] += 1
                return
            self._episode = _Open(recorder)
        vectors, pictures, prompt, left = recorder.split(message)
        for key in left:
            recorder.say(f"left {key}", f'"{key[:80]}" of the robot\'s messages is not recorded')
        record: dict[str, Any] = {
            "kind": "decision",
            "time": time.time() - decided.latency,
            "latency": decided.latency,
            "prompt": prompt,
            "candidates": np.asarray(decided.candidates, np.float32),
            "scores": np.asarray(decided.scores, np.float32),
            "chosen": decided.chosen,
            "answer": np.asarray(decided.answer, np.float32),
            "version": decided.version,
            "obs": None,
        }
        records, size = [record], _size(vectors, pictures)
        if recorder.take_room(size):
            record["obs"] = vectors
            records = [*_images(pictures), record]
        else:
            size = 0
        written = self._episode.write(records, size)
        self._episode.decisions += 1
        recorder.counts["decisions"] += 1
        if self._late is None or self._late.is_set():  # a stalled disk is waited for once
            self._late = None if written.wait(recorder.patience) else written

    def close(self) -> None:
        """See `robots.serving.told.Listener`."""
        if self._episode is not None:
            self._end("closed")
        self._recorder.forget(self)

    def _end(self, why: str) -> None:
        assert self._episode is not None
        self._episode.end(why)
        self._episode = None


class _Open:
    """An episode that is going on; its journal is the recorder's thread's."""

    def __init__(self, recorder: Recorder) -> None:
        self.decisions = 0
        self.failed = False
        self._recorder = recorder
        self._journal: Journal | None = None
        self._id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:12]}"
        self._begun = time.time()

    def write(self, records: list[dict[str, Any]], size: int = 0) -> threading.Event:
        """Have records written; the event says that they are, or could not be."""
        written = threading.Event()

        def work() -> None:
            try:
                self._append(records)
            finally:
                self._recorder.give_room(size)
                written.set()
            if self._journal is not None:  # nobody waits for this
                self._journal.sync_if_due()

        self._recorder.submit(work)
        return written

    def end(self, why: str) -> None:
        self._recorder.submit(lambda: self._close(why))

    # In the recorder's thread

    def _append(self, records: list[dict[str, Any]]) -> None:
        if self.failed:
            self._recorder.counts["unrecorded"] += 1
            return
        if not self._recorder.has_space():
            self.failed = True
            self._recorder.counts["unrecorded"] += 1
            return
        try:
            if self._journal is None:
                self._journal = self._recorder.open_journal(self._id)
                self._journal.append({"kind": "begin", "id": self._id, "started": self._begun})
            before = self._journal.size
            self._journal.append(*records)
            self._recorder.grown(self._journal.size - before)
        except Exception:
            self.failed = True  # what follows would not fit what is missing
            raise

    def _close(self, why: str) -> None:
        if self._journal is None:
            return
        try:
            with suppress(OSError):
                self._journal.append({"kind": "end", "why": "cut" if self.failed else why})
            with suppress(OSError):
                self._journal.close()
        finally:
            self._recorder.finish(self._journal.path)


def _why(told: Told) -> str:
    if told.success is not None:
        return "success"
    return "reward" if told.reward is not None and told.alone and not told.reset else "reset"


def _size(vectors: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in (*vectors.values(), *pictures.values()))


def _images(pictures: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [{"kind": "image", "key": key, "image": image} for key, image in pictures.items()]
