"""Which controls are drawn unasked, and how --guidance-control is read; light to import."""

from __future__ import annotations

from diffusion.errors import InputError, shown

SMALL = (4, 16)  # candidates of the smaller controls, where they are fewer than K
CAPS = {"tiny": 16, "tiny-flow": 16}  # the most candidates that are drawn unasked
CAP = 4  # of other models, whose images are dear
SCALES: dict[str, tuple[float, ...]] = {"tiny": (3.0, 5.0), "tiny-flow": (3.0, 5.0)}
OTHER_SCALES = (3.0, 7.5)


def parse_scales(text: str | None, model: str | None) -> tuple[float, ...]:
    """The scales of --guidance-control; None takes those of the model.

    Raises:
        InputError: not numbers of at least 0, separated by commas, nor "none".
    """
    if text is None:
        return SCALES.get(model or "tiny", OTHER_SCALES)
    if text.strip().lower() == "none":
        return ()
    found = []
    for word in text.split(","):
        try:
            scale = float(word)
        except ValueError:
            scale = -1.0
        if not 0 <= scale <= 1e6:
            raise InputError(
                f"--guidance-control: expected scales of at least 0, separated by commas, such as "
                f'1,3,7.5, or none; received "{shown(text)}"'
            )
        found.append(scale)
    return tuple(dict.fromkeys(found))
