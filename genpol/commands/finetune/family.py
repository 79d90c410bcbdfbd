"""The family of the pipeline that a command works on, and what it recommends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from diffusion.families.family import Family


class _Options(Protocol):
    """`Finetune` and `Generate`."""

    @property
    def model(self) -> str | None: ...
    @property
    def family(self) -> str | None: ...
    @property
    def model_config(self) -> str | None: ...


def family_of(config: _Options, given: type[Family] | None = None) -> type[Family] | None:
    """The family of one's own that is given, or that --family names; None where neither is.

    Raises:
        InputError: it is no family.
    """
    from diffusion.families.checks import check_family
    from diffusion.own_family import load_family

    if given is not None:
        return check_family(given, str(config.family or getattr(given, "__name__", str(given))))
    return load_family(config.family) if config.family else None


def advice(
    config: _Options, pipeline: Any = None, given: type[Family] | None = None
) -> dict[str, Any]:
    """What the family recommends for the model, before its weights are loaded."""
    from diffusion.model_facts import facts_of, facts_of_pipeline

    own, name = family_of(config, given), config.model or "tiny"
    if own is None and name in ("tiny", "tiny-flow"):
        return {}  # whose settings are all in a table
    if pipeline is not None:
        return facts_of_pipeline(pipeline, name).recommended(own)
    return facts_of(config.model_config or name).recommended(own)
