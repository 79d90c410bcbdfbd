"""A family of a user's own, by name or as a class."""

from __future__ import annotations

from diffusion.families.checks import check_family
from diffusion.families.family import Family
from diffusion.rewards.function import load_function


def load_family(name: str) -> type[Family]:
    """The class that "module:Class" names; the working directory is searched first.

    Raises:
        InputError: it cannot be imported, or is no family.
    """
    return check_family(load_function(name, what="Family"), name)
