"""Opens a dataset as the options of a command say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offline.data.episodes import Episodes


def opened(path: str, options: Any) -> Episodes:
    """A dataset with the labels, the videos and the picture size that a command's options ask for.

    Args:
        path: as given to --data.
        options: with `success`, `image_keys` and `image_size`.

    Raises:
        InputError: see `robots.datasets.open.open_dataset`.
    """
    from robots.datasets.open import open_dataset

    return open_dataset(
        path,
        success=options.success,
        images=options.image_keys,
        image_size=options.image_size,
    )
