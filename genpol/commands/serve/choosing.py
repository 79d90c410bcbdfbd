"""What `genpol serve` chooses by: values, a run's edits, or whatever a watched run comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genpol.commands.chunk_options import chunks
from genpol.commands.serve.options import CANDIDATES, Serve
from offline.errors import InputError, listed

if TYPE_CHECKING:
    from genpol.deployed.choice import Choice
    from genpol.deployed.judging import Verdict
    from genpol.deployed.watch import Watch
    from offline.data.episodes import Episodes
    from offline.spec import ActionSpec
    from offline.types import Policy
    from robots.serving.observations import Observations
    from robots.serving.versions import Version

Shapes = Mapping[str, tuple[int, ...]]


def first_choice(config: Serve) -> Choice:
    """What --value or --edit name; one without a value where neither is given.

    Raises:
        InputError: it is not there, or of another environment.
    """
    from genpol.deployed.choice import Choice, load_edits

    if config.edit is None:
        value, shapes = load_value(config)
        return Choice(value, shapes)
    choice = load_edits(config.edit, device=config.device or "cpu")
    if config.env is not None:
        choice.value.require_env(config.env)
    return choice


def load_value(config: Serve) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The critic (composed where there are several; None without --value), and what it observes."""
    from genpol.steering.compose import Composed
    from offline.critics.value import ValueFunction
    from robots.serving.observations import merged

    values = [ValueFunction.load(folder, device=config.device or "cpu") for folder in config.value]
    for value in values:
        if config.env is not None:
            value.require_env(config.env)
    shapes = merged(*(value.obs_shapes for value in values))
    if len(values) < 2:
        return (values[0] if values else None), shapes
    weights = list(config.value_weights) or [1.0 / len(values)] * len(values)
    return Composed(values, weights), shapes


def planned(config: Serve, choice: Choice, base: Policy, *, anytime: bool = True) -> Any:
    """`base` steered, if anything has been learnt, with the chunks that the options ask for;
    `anytime` lets it watch the deadline itself.

    Raises:
        InputError: the options do not fit the policy's chunks, or the edits do not.
    """
    from genpol.steering.overlap import overlapping

    value, overlap = chunks(config, choice.value, base.spec.chunk)
    if choice.editor is not None and config.score == "windows":
        raise InputError("edits move chunks of the value's length: leave out --score windows")
    if value is choice.value:
        policy = steer(config, choice, base, anytime=anytime)
    else:
        policy = steer(config, replace(choice, value=value), base, anytime=anytime)
    return overlapping(policy, overlap)


def steer(config: Serve, choice: Choice, base: Policy, *, anytime: bool = True) -> Any:
    """`base` steered as the options say; `anytime` lets it watch the deadline itself."""
    from genpol.steering.session import make_select

    usual = 0.0 if choice.editor is not None else 1.0
    return choice.steer(
        base,
        config.num_candidates or choice.candidates or CANDIDATES,
        make_select(usual if config.temperature is None else config.temperature, config.margin),
        gate=config.gate,
        deadline=config.deadline_ms / 1e3 if config.deadline_ms and anytime else None,
        noise=config.candidate_noise,
    )


def make_watch(
    config: Serve,
    first: Choice,
    spec: ActionSpec,
    observations: Callable[[Shapes], Observations],
    *,
    anytime: bool = True,
) -> Watch[Version]:
    """Watches the run of --watch; it does not look yet.

    Args:
        config: the options.
        first: what is served until something is there.
        spec: of the served actions.
        observations: makes what reads a robot's messages, of the shapes that a choice observes.
        anytime: as in `steer`.
    """
    from genpol.deployed.watch import Watch
    from robots.serving.versions import Version

    assert config.watch is not None

    def make(choice: Choice, name: str) -> Version:
        if choice.value is not None:
            if config.env is not None:
                choice.value.require_env(config.env)
            scored = choice.spec
            scored.require_scorable(spec.with_chunk(max(spec.chunk, scored.chunk)))
            known = watch.present.choice.obs_shapes if name != "0" and watch is not None else {}
            if known and (new := sorted(choice.obs_shapes.keys() - known.keys())):
                raise InputError(
                    f"the newer value observes {listed(new)}, which the present one does not: "
                    "start the server again to serve it"
                )
        return Version(
            name,
            lambda base: planned(config, choice, base, anytime=anytime),
            observations(choice.obs_shapes),
        )

    data = config.judge_by or config.record
    judge = None
    if data is not None:
        place = data

        def judge(newer: Choice, present: Choice) -> Verdict:
            return compared(config, newer, present, place, lambda: watch.closed)

    watch: Watch[Version] = None  # type: ignore[assignment]
    watch = Watch(
        config.watch,
        first,
        make,
        judge=judge,
        every=config.watch_every,
        log=None if config.record is None else Path(config.record) / "genpol",
        say=lambda text: print(text, flush=True),
        device=config.device or "cpu",
    )
    return watch


def compared(
    config: Serve, newer: Choice, present: Choice, data: str, stop: Callable[[], bool]
) -> Verdict:
    """What the held-out episodes of a dataset say of two choices."""
    from genpol.deployed.judging import Verdict, judge

    language = None
    if "language" in (newer.obs_shapes | present.obs_shapes):
        from offline.networks.language import embedder

        language = embedder(config.language_model)
    try:
        return judge(newer.value, present.value, opened(data), language=language, stop=stop)
    except InputError:  # no episode has ended yet
        return Verdict(0)


def opened(data: str) -> Episodes:
    """The episodes to judge by, as they are now."""
    from robots.datasets.open import open_dataset

    return open_dataset(data)


def spec_of_data(path: str) -> ActionSpec:
    """The actions of a dataset.

    Raises:
        InputError: there is none, or it does not say what bounds its actions have.
    """
    from offline.data.training_data import training_spec
    from robots.datasets.open import open_dataset

    episodes = open_dataset(path)
    training_spec(episodes, "bounds", 1)  # refuses actions without bounds
    return episodes.spec.with_chunk(1)
