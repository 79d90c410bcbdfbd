"""wandb beside a run: it gets the same numbers, and it may fail without the run being hurt.

Whatever goes wrong with wandb (it cannot start, its service dies, its disk is full, it hangs)
becomes one line of warning. From then on wandb gets nothing, and the run goes on with its own
files. A resumed run starts wandb again under the same id, which is kept in `wandb/run_id`.

The only file that imports wandb. Every call to it is made in a thread of its own, for which the
run waits a bounded time.
"""

from __future__ import annotations

import atexit
import contextlib
import netrc
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from offline.errors import InputError, shown
from offline.files import write_beside

if TYPE_CHECKING:
    from PIL.Image import Image

WandbMode = Literal["online", "offline", "disabled"]

# Whole seconds that a run waits for wandb, which by itself would wait for ever.
START_SECONDS = 120
CALL_SECONDS = 60
FINISH_SECONDS = 300  # an online run uploads what is left
EXIT_SECONDS = 60
CLEANING_SECONDS = 10


class WandbLog:
    """What wandb gets of a run; after its first failure, nothing.

    Args:
        folder: the run's; wandb's files go to `wandb/` in it.
        config: the run's resolved configuration. Its `wandb_project`, `wandb_name` and
            `wandb_tags`, where it has them, say how the run is shown.
        asked: None: `$WANDB_MODE`, else online when logged in, else offline.

    Raises:
        InputError: wandb was asked to be online and nobody is logged in, or a name is none that
            wandb takes. Nothing is written.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], asked: WandbMode | None) -> None:
        self._run: Any = None
        self._step = 0
        self._pictures = True
        environment = os.environ.get("WANDB_MODE")
        mode = asked or (environment if environment in ("online", "offline", "disabled") else None)
        if mode == "disabled":
            return
        shown_as = _shown_as(folder, config)
        self._thread = _Thread()
        started = self._try(
            "did not start", START_SECONDS, _start, folder, dict(config), mode, shown_as
        )
        atexit.register(_bound_exit, self._thread)  # runs before wandb's own: the later first
        if started:
            # After a resume the server may already have later rows; they are the same numbers.
            self._run, self._step = started

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a row."""
        if self._run and step >= self._step:
            self._try("took no numbers", CALL_SECONDS, self._run.log, dict(metrics), step=step)

    def image(self, step: int, name: str, image: Image) -> None:
        """Show a picture."""
        self._show(step, name, lambda wandb: wandb.Image(image))

    def video(self, step: int, name: str, path: Path, caption: str) -> None:
        """Show a film, mp4 or gif."""
        self._show(
            step,
            name,
            lambda wandb: wandb.Video(str(path), caption=caption, format=path.suffix[1:]),
        )

    def summary(self, numbers: Mapping[str, Any]) -> None:
        """Set the run's summary."""
        if self._run:
            update = lambda run: run.summary.update(dict(numbers))  # noqa: E731
            self._try("took no summary", CALL_SECONDS, update, self._run)

    def finish(self, exit_code: int) -> None:
        """Wait until wandb has written, and uploaded, what it has."""
        if self._run:
            self._try("did not finish", FINISH_SECONDS, self._run.finish, exit_code=exit_code)
            self._run = None

    def _show(self, step: int, name: str, make: Callable[[Any], Any]) -> None:
        """What cannot be made into a picture of wandb's costs its pictures, not its numbers."""
        if not (self._run and self._pictures and step >= self._step):
            return

        def attempt() -> Any:
            try:
                return make(_wandb())
            except Exception as error:
                return _Unusable(error)

        made = self._try("took no pictures", CALL_SECONDS, attempt)
        if isinstance(made, _Unusable):
            self._pictures = False
            reason = _reason(made.error)
            _warn(f'wandb cannot show "{name}" ({reason}), so it gets no more pictures and films')
        elif self._run:
            self.log(step, {name: made})

    def _try(self, failure: str, seconds: int, function: Callable[..., Any], *args, **kw) -> Any:
        """What `function` returns; None, and wandb is given up, where it fails or hangs."""
        value, error = self._thread.call(seconds, function, *args, **kw)
        if error is None:
            return value
        if isinstance(error, InputError):
            raise error
        reason = "its service has ended" if _service_ended() else _reason(error)
        _warn(f"wandb {failure} ({reason}); the run goes on without it, its files are whole")
        run, self._run = self._run, None
        if isinstance(error, _Hangs):
            _kill_service()  # which frees the thread
        if isinstance(self._thread.call(CLEANING_SECONDS, _clean, run)[1], _Hangs):
            _kill_service()
        return None


class _Hangs(Exception):
    """wandb has not come back in time."""


class _Unusable:
    """A picture that wandb refuses."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Thread:
    """Makes calls in order; the caller waits, but not for ever."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="wandb calls", daemon=True).start()

    def call(
        self, seconds: int, function: Callable[..., Any], *args: Any, **kw: Any
    ) -> tuple[Any, BaseException | None]:
        """What `function` returns, and what it raises instead, SystemExit included, or _Hangs.

        What a signal raises here, while it waits, goes through.
        """
        done = threading.Event()
        outcome: list[Any] = [None, None]

        def job() -> None:
            try:
                outcome[0] = function(*args, **kw)
            except BaseException as error:
                outcome[1] = error
            finally:
                done.set()

        self.begin(job)
        # A second at a time: while the whole process is stopped, no more than one second counts.
        for _ in range(seconds):
            if done.wait(1):
                return outcome[0], outcome[1]
        return None, _Hangs(f"no answer within {seconds} seconds")

    def begin(self, job: Callable[[], Any]) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()


def _shown_as(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `wandb.init` for project, name and tags.

    Raises:
        InputError: one is empty, too long, or has characters that wandb refuses.
    """
    project = config.get("wandb_project", "genpol")
    name, tags = config.get("wandb_name"), list(config.get("wandb_tags") or ())
    if not project.strip() or len(project) > 128 or set(project) & set("/\\#?%:"):
        raise InputError(
            f'--wandb-project "{shown(project)}" is no project of wandb: it takes 1 to 128 '
            "characters, and none of / \\ # ? % :"
        )
    if name is not None and not (name.strip() and len(name) <= 128):
        raise InputError(
            f'--wandb-name "{shown(name)}": wandb takes names of 1 to 128 characters; leave it out '
            "to take the output folder's"
        )
    for tag in tags:
        if not (tag.strip() and len(tag) <= 64):
            raise InputError(f'--wandb-tags "{shown(tag)}": wandb takes tags of 1 to 64 characters')
    # Twice the same tag would be an error of the server's.
    unique = list(dict.fromkeys(tags))
    return {"project": project, "name": name or folder.resolve().name, "tags": unique or None}


def _start(
    folder: Path, config: dict[str, Any], mode: WandbMode | None, shown_as: dict[str, Any]
) -> tuple[Any, int] | None:
    """A wandb run whose files are under `folder`, and its step; None where it is not installed."""
    try:
        wandb = _wandb()
        init = wandb.init  # a folder named wandb/ in the working directory imports, but is empty
    except (ImportError, AttributeError) as error:
        if getattr(error, "name", None) not in ("wandb", "init"):
            raise
        print('wandb is not installed, so it gets nothing: pip install "genpol[wandb]"')
        return None
    refusal = "not logged in to wandb: run `wandb login`, or pass --wandb offline"
    if mode == "online" and not _logged_in():
        raise InputError(refusal)
    # Silent, because its several lines a run would drown the one that matters.
    settings = wandb.Settings(silent=True, init_timeout=30)
    common = shown_as | {
        "id": _run_id(folder / "wandb" / "run_id"),
        "resume": "allow",
        "dir": folder,
        "config": config,
        "settings": settings,
    }
    why = ""
    if mode == "online" or (mode is None and _logged_in()):
        try:
            wandb.setup(settings)  # else logging in is not silent
            run = init(mode="online", **common)
            print(f"wandb: {run.url}")
            return run, run.step
        except wandb.errors.Error as error:
            if mode == "online" and type(error).__name__ == "AuthenticationError":
                raise InputError(refusal) from error
            why = f" because it cannot go online ({_reason(error)})"
            wandb.teardown()  # its service still holds the run's id
    wandb.setup(settings)
    run = init(mode="offline", **common)
    command = shlex.join(["wandb", "sync", str(folder / "wandb")])
    print(f"wandb: logging offline{why}; upload with `{command}`")
    return run, run.step


def _wandb() -> Any:
    import wandb

    return wandb


def _run_id(path: Path) -> str:
    """The id of the run at wandb, made at its start."""
    path.parent.mkdir(exist_ok=True)
    known = path.read_text().strip() if path.exists() else ""
    if not known:
        known = uuid.uuid4().hex[:8]
        write_beside(path, known.encode())
    return known


def _logged_in() -> bool:
    """Whether wandb has a key here: $WANDB_API_KEY or ~/.netrc, as `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    path = os.environ.get("NETRC", "~/.netrc")
    try:
        entries = netrc.netrc(os.path.expanduser(path))
        return entries.authenticators(urlsplit(server).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _clean(run: Any) -> None:
    """Leave nothing of a wandb that has failed: no wrapped stdout, no hook at exit.

    A service that still runs stays: the user may have runs of their own in it.
    """
    if run is not None:
        with contextlib.suppress(BaseException):
            run.finish(exit_code=1)
    if _service_ended():
        with contextlib.suppress(BaseException):
            _wandb().teardown()


def _bound_exit(thread: _Thread) -> None:
    """At exit wandb waits for its service without end; the thread goes on beside that."""

    def job() -> None:
        time.sleep(EXIT_SECONDS)
        _kill_service()

    thread.begin(job)


def _service() -> Any:
    """wandb's service process, a Popen; wandb itself only asks it to end, and waits. Or None."""
    with contextlib.suppress(Exception):
        return sys.modules["wandb"].sdk.wandb_setup._singleton._connection._proc._process
    return None


def _service_ended() -> bool:
    service = _service()
    return service is not None and service.poll() is not None


def _kill_service() -> None:
    if (service := _service()) is not None:
        service.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.wait(CLEANING_SECONDS)


def _reason(error: BaseException) -> str:
    """One line of at most about 160 characters."""
    text = " ".join(str(error).split())
    if isinstance(error, _Hangs):
        return text
    name = type(error).__name__
    return f"{name}: {text[:140]}" if text else name


def _warn(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"warning: {text}", file=sys.stderr)  # above a bar, if there is one
