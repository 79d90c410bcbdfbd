"""Files are durable and whole: fsynced before the rename, the old one kept when that fails."""

import os

import pytest

from offline.errors import InputError
from offline.files import beside, disk_errors, siblings, write_beside, write_together


@pytest.fixture
def calls(monkeypatch):
    """The names of what is fsynced (a folder as ".") and renamed, in order."""
    seen, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append(("fsync", "." if os.path.isdir(f"/proc/self/fd/{descriptor}") else name))
        fsync(descriptor)

    def noted_replace(old, new):
        seen.append(("rename", os.path.basename(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return seen


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of descriptors")
def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, calls):
    write_beside(tmp_path / "a.txt", b"new")
    assert calls == [("fsync", f".{os.getpid()}.a.txt"), ("rename", "a.txt"), ("fsync", ".")]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of descriptors")
def test_files_written_together_are_all_on_the_disk_before_the_first_rename(tmp_path, calls):
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert [kind for kind, _ in calls] == ["fsync", "fsync", "rename", "rename", "fsync"]
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"1", b"2"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), beside(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]


def test_no_file_is_replaced_when_one_of_several_cannot_be_written(tmp_path, monkeypatch):
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    done, fsync = [], os.fsync

    def full(descriptor):
        done.append(descriptor)
        if len(done) == 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(InputError, match=r"cannot write: No space left on device\. Free some"),
        disk_errors("cannot write", "Free some"),
    ):
        write_together({tmp_path / "a": b"3", tmp_path / "b": b"4"})
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"1", b"2"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_a_kill_leaves_is_found_by_the_name_of_its_file(tmp_path):
    for name in (".123.a.json", ".77.a.json", ".123.b.json", "a.json", ".x.a.json"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in siblings(tmp_path / "a.json")] == [".123.a.json", ".77.a.json"]
