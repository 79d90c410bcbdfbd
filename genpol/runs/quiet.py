"""Silences messages of other libraries, unless the user has asked for them."""

from __future__ import annotations

import os
import sys
import warnings

_LEVELS = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")
_asked = {name for name in _LEVELS if name in os.environ}  # by the user, before we set any


def hush() -> None:
    """Only errors from transformers and diffusers; call before either is imported."""
    for name in _LEVELS:
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:  # what they deprecate among themselves is no user's business
        theirs = r"(diffusers|transformers|peft|huggingface_hub)(\.|$)"
        warnings.filterwarnings("ignore", category=FutureWarning, module=theirs)
        warnings.filterwarnings("ignore", category=UserWarning, module=theirs)


def hide_loading_bars() -> None:
    """No bars for a load of a second ("Loading pipeline components"); downloads keep theirs."""
    if not _asked:
        import diffusers.utils.logging
        import transformers.utils.logging

        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
