"""Opens datasets as the options of a command say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offline.errors import InputError

if TYPE_CHECKING:
    from offline.data.episodes import Episodes

AS_IT_SAYS = "data"  # the --success of a dataset that says so itself


def opened(paths: Sequence[str], options: Any) -> Episodes:
    """Datasets with the labels, the videos and the picture size that a command's options ask for.

    Several become one, of which each gives its share of every batch.

    Args:
        paths: as given to --data.
        options: with `success`, `image_keys`, `image_size` and `data_weights`.

    Raises:
        InputError: another number of labels or weights than of datasets; see also
            `robots.datasets.open.open_dataset` and `offline.data.joined.JoinedEpisodes`.
    """
    from offline.data.joined import join
    from robots.datasets.open import open_dataset

    for name, given in (("success", options.success), ("data-weights", options.data_weights)):
        if len(given) not in ((0, len(paths)) if name != "success" else (0, 1, len(paths))):
            raise InputError(
                f"{len(given)} --{name} for {len(paths)} datasets: pass one for each --data"
            )
    labels = list(options.success) or [AS_IT_SAYS]
    labels = labels * len(paths) if len(labels) == 1 else labels
    found = [
        open_dataset(
            path,
            success=None if label == AS_IT_SAYS else label,
            images=options.image_keys,
            image_size=options.image_size,
        )
        for path, label in zip(paths, labels, strict=True)
    ]
    return join(found, options.data_weights, paths)
