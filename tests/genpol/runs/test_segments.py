"""Replays in checkpoints by what has changed of them: exact, small, and safe at any moment."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replay_steps import draw, make, same
from toy_data import spec

from genpol.runs import checkpoints, segments, tensor_files
from genpol.runs.segments import Segments
from genpol.runs.state_tree import flatten, unflatten
from offline.data.replay import Replay, ReplaySnapshot
from offline.errors import InputError

CAMERA = {"camera": (4, 4, 3), "state": (2,)}


class Kept:
    """A replay, and the checkpoints that it is saved in."""

    def __init__(self, folder: Path, **options) -> None:
        self.folder, self.options = folder, options
        self.replay = make(**options)
        self.segments = Segments(self.replay.tables)
        self.steps = 0

    def save(self) -> None:
        tensors, document = flatten(self.replay.snapshot(rows=False).tree())
        state = {"replay": document, "steps": self.steps}
        tensors["weights"] = torch.full((3,), float(self.steps))
        checkpoints.save(self.folder, self.steps, tensors, state, 2, self.segments)

    def loaded(self, folder: Path | None = None) -> Kept:
        """What another process goes on with."""
        other = Kept(self.folder, **self.options)
        found = checkpoints.latest(folder or self.folder, other.segments)
        assert found is not None
        step, tensors, state = found
        assert state["steps"] == step and float(tensors["weights"][0]) == step
        other.replay.restore(ReplaySnapshot.of(unflatten(tensors, state["replay"])))
        other.steps = step
        return other

    def files(self) -> dict[str, int]:
        """Bytes of each segment on the disk."""
        found = (self.folder / "segments").iterdir()
        return {path.name: path.stat().st_size for path in found}


def step(replay: Replay, chance: random.Random) -> None:
    """One step of a lane by chance, which may end its episode or give it up."""
    lane, head = chance.randrange(replay.lanes), replay._head

    def seen():
        return {
            key: np.frombuffer(chance.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
            for key, shape in replay.obs_shapes.items()
        }

    before = seen()
    if replay._steps[lane]:
        slot = head[lane] * replay.lanes + lane
        before = {key: replay.held[f"obs.{key}"][slot].numpy() for key in replay.obs_shapes}
    ends = chance.choice(["", "", "", "", "terminated", "truncated", "cut"])
    replay.add(
        lane,
        before,
        np.array([chance.random()], np.float32),
        chance.random(),
        seen(),
        ends == "terminated",
        ends == "truncated",
        chance.choice([None, True, False]) if ends else None,
    )
    if ends == "cut":
        replay.cut(lane)


def assert_same(one: Replay, two: Replay) -> None:
    """Everything that the two go on from, bit for bit."""
    a, b = one.snapshot(), two.snapshot()
    assert (a.settings, a.lanes, a.filled, a.drawable) == (
        b.settings,
        b.lanes,
        b.filled,
        b.drawable,
    )
    written = a.arrays["key"] >= 0
    for name in a.arrays:
        rows = [snapshot.arrays[name][written].numpy().tobytes() for snapshot in (a, b)]
        assert rows[0] == rows[1], name
    assert torch.equal(a.arrays["key"], b.arrays["key"]) and torch.equal(a.starts, b.starts)
    if a.drawable:
        same(draw(one, 50), draw(two, 50))


@pytest.fixture
def tiny(monkeypatch):
    """Files of a few rows, so that small replays have many."""
    monkeypatch.setattr(segments, "LARGEST", 1500)
    monkeypatch.setattr(segments, "SMALL", 400)
    monkeypatch.setattr(segments, "SPARE", 500)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Of the disk, which has nothing to do with what is tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 40, "shapes": CAMERA},
        {"capacity": 40, "shapes": CAMERA, "lanes": 3, "n_step": 4},
        {"capacity": 25, "chunk": 1},
    ],
    ids=["images", "lanes", "numbers"],
)
def test_saving_and_loading_at_any_time_changes_nothing(options, tmp_path):
    """Round the ring several times; the replay that goes on is now and then the loaded one."""
    chance = random.Random(0)
    kept, most, slots = Kept(tmp_path, **options), 0, options["capacity"]
    other = make(**options)  # what never was in a file
    draws = random.Random(1), random.Random(1)
    for _ in range(20):
        for _ in range(chance.choice([0, 1, 2, 5, 30])):
            for replay, drawn in zip((kept.replay, other), draws, strict=True):
                step(replay, drawn)
            kept.steps += 1
        kept.save()
        most = max(most, len(kept.files()))
        if chance.random() < 0.5:
            kept = kept.loaded()
        assert_same(kept.replay, other)
        live = sum(table.used * table.row_bytes for table in kept.replay.tables().values())
        # Two checkpoints, each with at most twice what counts, and heads of files.
        assert sum(kept.files().values()) <= 2 * (2 * live + 500 + 1500) + 1000 * len(kept.files())
    assert kept.steps > 2 * slots and most > 1


def test_only_what_is_new_is_written(tmp_path):
    kept, chance = Kept(tmp_path, capacity=3000, shapes={"camera": (16, 16, 3)}), random.Random(0)
    row = 16 * 16 * 3 + 100  # observation, and the rest with its numbers in the files
    film(kept, 2000)
    kept.save()
    whole = kept.files()
    assert sum(whole.values()) > 2000 * 768
    for _ in range(3):
        for _ in range(20):
            step(kept.replay, chance)
        kept.steps += 20
        kept = kept.loaded()  # goes on with nothing to write
        kept.save()
        before = set(kept.files())
        for _ in range(20):
            step(kept.replay, chance)
        kept.steps += 20
        kept.save()
        new = {name: size for name, size in kept.files().items() if name not in before}
        assert 20 * 768 < sum(new.values()) < 4 * 45 * row, new
        assert set(whole) <= set(kept.files())
    again = Kept(tmp_path / "again", **kept.options)
    again.replay.restore(kept.replay.snapshot())
    assert_same(again.replay, kept.loaded().replay)


def film(kept: Kept, count: int) -> None:
    """An endless episode of one picture."""
    picture = {"camera": np.zeros((16, 16, 3), np.uint8)}
    for _ in range(count):
        kept.replay.add(0, picture, np.zeros(1), 0.0, picture, False, False)
    kept.steps += count


def test_nothing_new_writes_no_file(tmp_path):
    kept = Kept(tmp_path, capacity=30)
    kept.save()
    assert not (tmp_path / "segments").exists()
    step(kept.replay, random.Random(0))
    kept.steps = 1
    kept.save()
    files = kept.files()
    kept.steps = 2
    kept.save()
    assert kept.files() == files and len(files) == 1
    assert_same(kept.loaded().replay, kept.replay)


def test_many_small_saves_leave_few_files(tmp_path):
    """Sizes fall by powers of two, and each row is written about as often."""
    kept, chance, seen = Kept(tmp_path, capacity=500), random.Random(0), {}
    for _ in range(100):
        step(kept.replay, chance)
        kept.steps += 1
        kept.save()
        seen |= kept.files()
    assert len(kept.files()) <= 10  # of two checkpoints
    row = sum(table.row_bytes for table in kept.replay.tables().values())
    assert sum(seen.values()) < 8 * 130 * (row + 30) + 600 * len(seen)
    assert_same(kept.loaded().replay, kept.replay)


@pytest.mark.usefixtures("tiny")
def test_files_that_hold_mostly_replaced_rows_are_written_again(tmp_path, monkeypatch):
    """The end of a long episode changes something of every step, and no observation."""
    monkeypatch.setattr(segments, "LARGEST", 10_000)
    kept, state = Kept(tmp_path, capacity=800, chunk=1), {"state": np.zeros(1)}
    for _ in range(7):
        for _ in range(100):
            kept.steps += 1
            kept.replay.add(0, state, np.zeros(1), 1.0, state, kept.steps == 700, False)
        kept.save()
    document, _ = checkpoints.read_document(tmp_path / "step-000700")
    held = sum(segment.bytes for segment in document.segments.files)
    counting = sum(table.used * table.row_bytes for table in kept.replay.tables().values())
    assert held < 1.7 * counting, (held, counting)
    assert_same(kept.loaded().replay, kept.replay)


@pytest.mark.usefixtures("tiny")
def test_segments_whose_rows_are_all_overwritten_go(tmp_path):
    kept, chance = Kept(tmp_path, capacity=60, shapes=CAMERA), random.Random(0)
    seen: list[str] = []
    for _ in range(12):
        for _ in range(20):
            step(kept.replay, chance)
        kept.steps += 20
        kept.save()
        seen += [name for name in kept.files() if name not in seen]
    assert len(seen) > 30 and len(kept.files()) < 25
    assert not set(seen[:10]) & set(kept.files())


def test_the_settings_must_be_those_that_saved_it(tmp_path):
    kept = Kept(tmp_path, capacity=30)
    for _ in range(5):
        step(kept.replay, random.Random(0))
    kept.save()
    for options, message in (
        ({"capacity": 3}, "no ascending rows among the 3 of the observations"),
        ({"capacity": 30, "shapes": {"state": (2,)}}, r"float32 \(1,\), this run's are .* \(2,\)"),
        ({"capacity": 30, "shapes": {"other": (1,)}}, "are none, this run's"),
        ({"capacity": 31}, "saved with slots 30, this one has 31"),
    ):
        with pytest.raises(InputError, match=message):
            Kept.loaded(type("Other", (), {"folder": tmp_path, "options": options})())


# ------------------------------------------------------------------------ what is torn


def two_checkpoints(folder: Path) -> tuple[Kept, Kept, Kept]:
    """Of steps 20 and 30, and what is newer than both."""
    chance, found = random.Random(0), []
    kept = Kept(folder, capacity=25, shapes=CAMERA)
    for count in (20, 10, 10):
        for _ in range(count):
            step(kept.replay, chance)
        kept.steps += count
        found.append(copied(kept))
        if kept.steps < 40:
            kept.save()
    return found[0], found[1], kept


def copied(kept: Kept) -> Kept:
    other = Kept(kept.folder, **kept.options)
    other.replay.restore(kept.replay.snapshot())
    other.steps = kept.steps
    return other


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("damage", [cut, change, os.remove])
def test_a_torn_segment_falls_back_to_the_one_before(damage, tmp_path, capsys):
    older, newer, _ = two_checkpoints(tmp_path)
    names = [
        {segment.file for segment in checkpoints.read_document(path)[0].segments.files}
        for path in (tmp_path / "step-000020", tmp_path / "step-000030")
    ]
    torn = max(names[1] - names[0])
    assert_same(newer.loaded().replay, newer.replay)
    damage(tmp_path / "segments" / torn)
    left = older.files()
    kept = older.loaded()
    assert_same(kept.replay, older.replay)
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 1 and torn in warned[0] and "step-000030, skipped" in warned[0]
    assert older.files() == left
    # It goes on from there; what could not be read does not count among the two that are kept.
    step(kept.replay, random.Random(5))
    kept.steps = 31
    checkpoints_kept = tmp_path.glob("step-*")
    tensors, document = flatten(kept.replay.snapshot(rows=False).tree())
    tensors["weights"] = torch.full((3,), 31.0)
    state = {"replay": document, "steps": 31}
    checkpoints.save(tmp_path, 31, tensors, state, 2, kept.segments, since=20)
    assert sorted(path.name for path in checkpoints_kept) == ["step-000020", "step-000031"]
    assert_same(kept.loaded().replay, kept.replay)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("tiny")
def test_what_both_need_is_missed_in_one_line(tmp_path, capsys):
    older, _, _ = two_checkpoints(tmp_path)
    for path in (tmp_path / "segments").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="none of the 2 checkpoints"):
        older.loaded()
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    "name", ["../step-000020/state.safetensors", "/etc/passwd", "segment-000020-0.safetensors"]
)
def test_a_list_names_no_file_elsewhere(name, tmp_path):
    """Also where whoever changed it has signed it again."""
    import json

    older, _, _ = two_checkpoints(tmp_path)
    for path in tmp_path.glob("step-*"):
        document = json.loads((path / "state.json").read_text())
        document["segments"]["files"][0]["file"] = name
        document["sha256"] = checkpoints._digest(document)
        (path / "state.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="none of the 2"):
        older.loaded()


# ------------------------------------------------------------------------ kills and full disks

WRITING = (
    (os, "rename"),
    (os, "replace"),
    (os, "fsync"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (tensor_files, "save_file"),
    (shutil, "rmtree"),
)


def before_each(monkeypatch, act) -> None:
    """`act` is called before everything that changes the disk."""
    for owner, name in WRITING:
        real = getattr(owner, name)

        def acting(*arguments, _real=real, _name=name, **rest):
            act(_name, arguments)
            return _real(*arguments, **rest)

        monkeypatch.setattr(owner, name, acting)


@pytest.mark.usefixtures("tiny")
def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(tmp_path, monkeypatch):
    """The folder is copied before each change of the disk, and with half of what was to be
    written: that is what a kill there leaves."""
    folder, moments = tmp_path / "run", []
    _, older, kept = two_checkpoints(folder)
    copytree, rmtree, save_file = shutil.copytree, shutil.rmtree, tensor_files.save_file

    def moment(name, arguments):
        if name == "rmtree" and Path(arguments[0]).is_dir():  # half removed
            for path in sorted(Path(arguments[0]).iterdir())[:1]:
                os.remove(path)
        if name == "save_file":
            save_file(*arguments)
            os.truncate(arguments[1], arguments[1].stat().st_size // 2)
        moments.append(tmp_path / f"moment-{len(moments)}")
        copytree(folder, moments[-1])

    with monkeypatch.context() as patch:
        before_each(patch, moment)
        kept.save()
    moments.append(folder)
    reached = []
    for number, left in enumerate(moments):
        found = kept.loaded(left)
        assert_same(found.replay, {30: older, 40: kept}[found.steps].replay)
        reached.append(found.steps)
        # and the next process goes on from it: the same is saved again, and nothing else stays
        found.folder = left
        step(found.replay, random.Random(3))
        found.steps += 5
        found.save()
        assert_same(found.loaded(left).replay, found.replay)
        listed = {
            segment.file
            for path in left.glob("step-*")
            for segment in checkpoints.read_document(path)[0].segments.files
        }
        assert set(found.files()) == listed and list(left.glob(".*")) == []
        if number < len(moments) - 1:
            rmtree(left)
    assert reached == sorted(reached) and {30, 40} == set(reached)
    assert reached.count(30) > 10 and reached.count(40) > 3


@pytest.mark.usefixtures("tiny")
def test_a_disk_that_refuses_at_any_moment_loses_nothing(tmp_path, monkeypatch):
    """One line, no leftovers, and the run goes on once there is room."""
    calls = refused = 0
    finished = False
    while not finished:
        folder = tmp_path / f"run-{refused}"
        _, older, kept = two_checkpoints(folder)
        files, calls = kept.files(), 0

        def refuse(name, arguments, at=refused):
            nonlocal calls
            calls += 1
            if calls > at and name in ("save_file", "fsync", "mkdir", "rename", "replace"):
                raise OSError(28, os.strerror(28))

        with monkeypatch.context() as patch:
            before_each(patch, refuse)
            try:
                kept.save()
                finished = True
            except InputError as error:
                assert "No space left on device" in str(error) and "\n" not in str(error)
        found = kept.loaded()
        assert_same(found.replay, {30: older, 40: kept}[found.steps].replay)
        if found.steps == 30:
            assert kept.files() == files and list(folder.glob(".*")) == []
        kept.save()
        assert_same(kept.loaded().replay, kept.replay)
        shutil.rmtree(folder)
        refused += 1
    assert refused > 15


def test_a_replay_in_files_is_saved_and_read_by_slices(tmp_path, monkeypatch):
    """Larger than memory, say: nothing that is as large as the replay is made."""
    options = {"capacity": 900, "shapes": {"camera": (64, 64, 3)}}
    made = Replay(900, 2, spec(), options["shapes"], 0.5, folder=tmp_path / "r", memory_limit=1)
    assert isinstance(made._arrays["obs.camera"], np.memmap)
    kept = Kept(tmp_path / "run", capacity=900, shapes={"camera": (64, 64, 3)})
    kept.replay, kept.segments = made, Segments(made.tables)
    picture = {"camera": np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)}
    for _ in range(850):
        made.add(0, picture, np.zeros(1), 0.0, picture, False, False)
    written = []

    def saved(content, path):
        written.append(sum(tensor.nbytes for tensor in content.values()))
        save_file(content, path)

    save_file = tensor_files.save_file
    monkeypatch.setattr(tensor_files, "save_file", saved)
    monkeypatch.setattr(segments, "LARGEST", 1 << 20)
    kept.steps = 850
    kept.save()
    assert len(written) == 12 and max(written) <= 1 << 20  # the last one is the checkpoint's own
    assert_same(kept.loaded().replay, made)
