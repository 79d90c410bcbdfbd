"""What the slow tests have the real LeRobot do, in its own interpreter. Prints one line of JSON.

python real_lerobot.py write DIR               a dataset with two videos, by LeRobot's writer
python real_lerobot.py policies DIR OUT        an ACT and a diffusion policy for that dataset
python real_lerobot.py sample OUT              K candidates of each, through genpol's adapter
python real_lerobot.py read DIR                what LeRobot's loader finds in a dataset
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

LENGTHS, FPS, SIZE = (9, 12, 10), 10, (48, 64)
CAMERAS = ("top", "wrist")


def colour(episode: int, step: int) -> int:
    """The grey of a frame, by which it is told from all others."""
    return 20 + 15 * step + 5 * episode


def frame(episode: int, step: int, camera: int) -> np.ndarray:
    picture = np.full((*SIZE, 3), colour(episode, step), np.uint8)
    picture[:, : SIZE[1] // 2] = 250 - 60 * camera  # which camera it is
    return picture


def write(folder: str) -> dict[str, object]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    picture = {"dtype": "video", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        repo_id="tests/toy",
        root=folder,
        fps=FPS,
        features={
            "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
            **{f"observation.images.{camera}": picture for camera in CAMERAS},
            "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
        },
        use_videos=True,
    )
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            dataset.add_frame(
                {
                    "observation.state": np.array([episode, step, 0.5], np.float32),
                    **{
                        f"observation.images.{camera}": frame(episode, step, index)
                        for index, camera in enumerate(CAMERAS)
                    },
                    "action": np.array([step / 20, -episode / 4], np.float32),
                    "task": f"task {episode % 2}",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return {"frames": dataset.num_frames}


def policies(folder: str, out: str) -> dict[str, object]:
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    torch.manual_seed(0)
    meta = LeRobotDatasetMetadata("tests/toy", root=folder)
    small_act = ACTConfig(
        chunk_size=8,
        n_action_steps=8,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=4,
        pretrained_backbone_weights=None,
        device="cpu",
    )
    small_diffusion = DiffusionConfig(
        n_obs_steps=2,
        horizon=8,
        n_action_steps=6,
        down_dims=(16, 32),
        n_groups=4,
        crop_shape=None,
        num_inference_steps=2,
        num_train_timesteps=10,
        spatial_softmax_num_keypoints=4,
        diffusion_step_embed_dim=16,
        pretrained_backbone_weights=None,
        device="cpu",
    )
    for name, config in (("act", small_act), ("diffusion", small_diffusion)):
        policy = make_policy(config, ds_meta=meta)
        policy.save_pretrained(f"{out}/{name}")
        for processor in make_pre_post_processors(config, dataset_stats=meta.stats):
            processor.save_pretrained(f"{out}/{name}")
    return {
        name: sorted(p.name for p in Path(out, name).iterdir()) for name in ("act", "diffusion")
    }


def sample(out: str) -> dict[str, object]:
    """Observations are named as genpol reads them from a dataset, and as a robot may send them."""
    import torch

    from offline.spec import ActionSpec
    from robots.policies.load import load_black_box

    rng = np.random.default_rng(0)
    pictures = {
        camera: torch.from_numpy(rng.integers(0, 255, (1, *SIZE, 3), np.uint8))
        for camera in CAMERAS
    }
    state = torch.tensor([[0.0, 1.0, 0.5]])
    ours = {"state": state, **{f"images.{camera}": x for camera, x in pictures.items()}}
    theirs = {
        "observation/state": state,
        **{f"observation/images/{camera}": x for camera, x in pictures.items()},
    }
    found: dict[str, object] = {}
    spec = ActionSpec.from_bounds([-10.0, -10.0], [10.0, 10.0])
    for name in ("act", "diffusion"):
        policy = load_black_box(f"lerobot:{out}/{name}", env_spec=spec, device="cpu")
        seeded = [torch.Generator().manual_seed(3) for _ in range(3)]
        drawn = policy.sample(ours, 5, seeded[0])
        again = policy.sample(theirs, 5, seeded[1])
        swapped = {
            "state": state, "images.top": pictures["wrist"], "images.wrist": pictures["top"]
        }  # fmt: skip
        other = policy.sample(swapped, 5, seeded[2])
        found[name] = {
            "shape": list(drawn.shape),
            "spread": float(drawn.std(1, correction=0).max()),
            "again": float((drawn - again).abs().max()),
            "swapped": float((drawn - other).abs().max()),
        }
    return found


class PyavReader:
    """torchvision.io.VideoReader as LeRobot asks for it, which newer torchvision no longer has."""

    def __init__(self, path: str, stream: str) -> None:
        import av

        self.container = av.open(path)
        self.stream = self.container.streams.video[0]

    def seek(self, seconds: float, keyframes_only: bool = False) -> PyavReader:
        self.container.seek(int(seconds / self.stream.time_base), stream=self.stream)
        return self

    def __iter__(self):
        import torch

        for decoded in self.container.decode(self.stream):
            picture = torch.from_numpy(decoded.to_ndarray(format="rgb24"))
            yield {"data": picture.permute(2, 0, 1), "pts": float(decoded.time)}


def read(folder: str) -> dict[str, object]:
    import torchvision
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    if not hasattr(torchvision.io, "VideoReader"):
        torchvision.io.VideoReader = PyavReader
        torchvision.set_video_backend = lambda backend: None
    dataset = LeRobotDataset("tests/recorded", root=folder)
    items = [dataset[i] for i in range(len(dataset))]
    plain = {
        key: [np.asarray(item[key]).reshape(-1).tolist() for item in items]
        for key, feature in dataset.features.items()
        if feature["dtype"] not in ("video", "image", "string")
    }
    pictures = {
        key: [float(np.asarray(item[key]).mean() * 255) for item in items]
        for key in dataset.meta.camera_keys
    }
    return {
        "episodes": dataset.num_episodes,
        "fps": dataset.fps,
        "columns": plain,
        "pictures": pictures,
        "tasks": [item["task"] for item in items],
        "stats": sorted(dataset.meta.stats["action"]),
    }


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    result = {"write": write, "policies": policies, "sample": sample, "read": read}[name](
        *arguments
    )
    print(json.dumps(result))
