"""Expressive generative policies, and the operators that improve any of them."""

from __future__ import annotations

__version__ = "0.1.0"
