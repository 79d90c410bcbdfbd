"""A prompt that may carry what stands beside it in its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Prompt(str):
    """A prompt; equal to its text, so that whoever needs nothing else takes it for a string.

    Attributes:
        negative: its own negative prompt; None takes the run's.
        metadata: the other columns of its row, by name. Rewards of three arguments get them.
    """

    negative: str | None
    metadata: Mapping[str, Any]

    def __new__(
        cls, text: str, negative: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Prompt:
        self = super().__new__(cls, text)
        self.negative, self.metadata = negative, metadata or {}
        return self


def negative_of(prompt: str, default: str) -> str:
    """The negative prompt of a prompt, or the run's."""
    own = getattr(prompt, "negative", None)
    return default if own is None else own


def metadata_of(prompt: str) -> Mapping[str, Any]:
    """What stands beside a prompt; empty for a plain string."""
    return getattr(prompt, "metadata", {})
