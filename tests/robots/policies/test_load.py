"""What `--policy` may name: every form, and one line for everything else."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from offline.errors import InputError
from offline.spec import ActionSpec
from robots.policies.load import is_black_box, load_black_box, parse_options

SPEC = ActionSpec.from_bounds([-1.0], [1.0])


@pytest.mark.parametrize(
    "text",
    [
        "robomimic:model.pth",
        "octo:runs/octo?model=a:B",
        "lerobot:x",
        "ws://h:8000",
        "my.module:act",
    ],
)
def test_these_are_black_boxes(text):
    assert is_black_box(text)


def test_our_own_folder_is_no_black_box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:name").mkdir()
    assert not is_black_box(str(tmp_path))
    assert not is_black_box("odd:name")
    assert not is_black_box("runs/misspelt")


def test_options():
    text = "some/dir?model=pkg.mod:Class&proprio=eef_pos+gripper&dataset=a%26b"
    assert parse_options(text) == (
        "some/dir",
        {"model": "pkg.mod:Class", "proprio": "eef_pos+gripper", "dataset": "a&b"},
    )
    assert parse_options("dir") == ("dir", {})


def test_a_module_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "steady_hand.py").write_text("def act(obs):\n    return [0.5]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    policy = load_black_box("steady_hand:act", env_spec=SPEC)
    act = policy.sample({"state": torch.zeros(3, 2)}, 2, None)
    assert act.shape == (3, 2, 1, 1)
    assert policy.spec.unnormalize(act).flatten().tolist() == [0.5] * 6


def test_the_adapters_are_given_everything(tmp_path, monkeypatch):
    """Files of other owners: only what they are called with is checked."""
    calls = {}

    class Loaded(str):
        algo = SimpleNamespace(nets=None)  # has no weights to check

    def recorder(name):
        def load(first, **named):
            calls[name] = (str(first), named)
            return Loaded(name)

        return load

    for module, kind, method in (
        ("robots.policies.robomimic", "RobomimicPolicy", "load"),
        ("robots.serving.client", "RemotePolicy", "connect"),
    ):
        fake = ModuleType(module)
        setattr(fake, kind, SimpleNamespace(**{method: recorder(kind)}))
        monkeypatch.setitem(sys.modules, module, fake)
    file = tmp_path / "model.pth"
    file.touch()
    common = {"trust": True, "env_spec": SPEC, "action_chunk": 4, "language": "push it"}
    assert load_black_box(f"robomimic:{file}", **common) == "RobomimicPolicy"
    assert load_black_box("ws://host:8000", **common) == "RemotePolicy"
    assert calls["RobomimicPolicy"] == (
        str(file),
        {"trust": True, "env_spec": SPEC, "action_chunk": 4, "device": "cpu"},
    )
    assert calls["RemotePolicy"] == (
        "ws://host:8000",
        {"env_spec": SPEC, "chunk": 4, "prompt": "push it"},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs/clone", "not a folder here.*octo:DIR"),
        ("robomimic:none.pth", "there is no such file"),
        ("robomimic:", "names no file: robomimic:FILE"),
        ("robomimic:.", "is not a file"),
        ("octo:none", "octo:none: there is no such folder"),
        ("lerobot:none", "lerobot:none: there is no such folder"),
        ("octo:.?window", 'expected .option=value.*received "window"'),
        ("octo:.?window=1&window=2", "given twice"),
        ("octa:some/dir", 'Did you mean "octo"'),
        ("robomimc:model.pth", 'Did you mean "robomimic"'),
        ("ws:host:8000", "ws://host:port"),
        ("what is:this", "names no policy.*robomimic:FILE"),
        ("no_such_module:act", "module no_such_module does not import: ModuleNotFoundError"),
        ("offline.errors:did_you_meen", 'there is no "did_you_meen". Did you mean "did_you_mean"'),
        ("offline.errors:annotations", "is a _Feature, expected a callable"),
    ],
)
def test_one_line_says_what_is_wrong(text, message):
    with pytest.raises(InputError, match=message) as error:
        load_black_box(text, env_spec=SPEC)
    assert "\n" not in str(error.value)


def test_a_module_that_fails_and_a_missing_environment(tmp_path, monkeypatch):
    (tmp_path / "broken_hand.py").write_text("raise RuntimeError('no gripper\\nat all')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        InputError, match="broken_hand does not import: RuntimeError: no gripper "
    ) as e:
        load_black_box("broken_hand:act", env_spec=SPEC)
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="name one, --env"):
        load_black_box("offline.errors:did_you_mean")


def test_missing_libraries_say_how_to_install(tmp_path, monkeypatch):
    for name in ("lerobot", "octo"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="LeRobot is not installed: pip install lerobot"):
        load_black_box(f"lerobot:{tmp_path}", env_spec=SPEC)
    pytest.importorskip("jax")
    with pytest.raises(InputError, match="Octo is not installed: pip install git"):
        load_black_box(f"octo:{tmp_path}", env_spec=SPEC)
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "robots.policies.octo")
    with pytest.raises(InputError, match=r'needs jax: pip install "genpol\[octo\]"'):
        load_black_box(f"octo:{tmp_path}", env_spec=SPEC)
