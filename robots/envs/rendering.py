"""Pictures of MuJoCo scenes, from one OpenGL context per kind of scene.

A context costs .5 s and 120 MB, so the many environments of an evaluation share one. Shadows,
reflections and multisampling are off (together 8 to 14 times faster in software); pictures are
drawn at twice the size and averaged instead, which costs less.
"""

from __future__ import annotations

import atexit
from functools import lru_cache
from typing import Any

import numpy as np

from offline.errors import InputError

LARGEST = 1024


def draw(model: Any, data: Any, file: Any, camera: dict[str, Any], size: int) -> np.ndarray:
    """Draw a scene.

    Args:
        model: MuJoCo's model.
        data: MuJoCo's data.
        file: identifies the model's file; environments made from one share a context.
        camera: fields of MuJoCo's free camera, such as lookat, distance, azimuth, elevation; or
            of one of the model's own (`fixed_camera`).
        size: height and width in pixels.

    Returns:
        (size, size, 3) uint8, row 0 at the top.

    Raises:
        InputError: a size that cannot be drawn, or no OpenGL on this machine.
    """
    import mujoco

    renderer = _renderer(_Scene(file, model), size)
    mujoco.mjv_updateScene(
        model,
        data,
        mujoco.MjvOption(),
        None,
        _camera(model, camera),
        mujoco.mjtCatBit.mjCAT_ALL,
        renderer.scene,
    )
    large = renderer.render()
    pairs = large.reshape(size, 2, size, 2, 3).astype(np.uint16)
    return (pairs.sum((1, 3)) // 4).astype(np.uint8)


def check_size(size: int) -> None:
    """Check that a picture can have this height and width.

    Raises:
        InputError: if not.
    """
    if not 1 <= size <= LARGEST:
        raise InputError(f"images can be 1 to {LARGEST} pixels wide, not {size}")


def fixed_camera(index: int) -> dict[str, Any]:
    """The fields of a camera that the model itself has."""
    import mujoco

    return {"type": mujoco.mjtCamera.mjCAMERA_FIXED, "fixedcamid": index}


class _Scene:
    """A model that equals another one made from the same file: the key of a context."""

    def __init__(self, file: Any, model: Any) -> None:
        self.file, self.model = file, model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Scene) and other.file == self.file

    def __hash__(self) -> int:
        return hash(self.file)


@lru_cache(maxsize=4)
def _renderer(scene: _Scene, size: int) -> Any:
    check_size(size)
    import mujoco

    visual = scene.model.vis
    visual.quality.offsamples = 0
    visual.global_.offwidth = max(visual.global_.offwidth, 2 * size)
    visual.global_.offheight = max(visual.global_.offheight, 2 * size)
    try:
        renderer = mujoco.Renderer(scene.model, 2 * size, 2 * size)
    except Exception as error:  # each backend has its own kinds, down to AttributeError
        raise InputError(
            f"cannot draw: OpenGL did not start ({' '.join(str(error).split())[:120]}). Install "
            "libegl1, or set MUJOCO_GL to egl, osmesa or glfw"
        ) from error
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = False
    # After mujoco registered its own: contexts must go before the display does.
    atexit.register(_renderer.cache_clear)
    return renderer


def _camera(model: Any, fields: dict[str, Any]) -> Any:
    import mujoco

    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    for name, value in fields.items():
        if name == "lookat":
            camera.lookat[:] = value
        else:
            setattr(camera, name, value)
    if "trackbodyid" in fields:
        camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
    return camera
