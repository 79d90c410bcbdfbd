"""Files of prompts in every form: read the same way, with what stands beside each prompt."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tracemalloc

import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq

from diffusion.errors import InputError
from diffusion.prompts import json_list
from diffusion.prompts.prompt import Prompt, metadata_of, negative_of
from diffusion.prompts.sources import load_prompts, read_all

ROWS = [
    {"prompt": "a cat, asleep", "negative_prompt": None, "count": "1"},
    {"prompt": "two\nlines é", "negative_prompt": "blur", "count": "2"},
    {"prompt": "  padded  ", "negative_prompt": None, "count": "3"},
    {"prompt": "a cat, asleep", "negative_prompt": "noise", "count": "4"},
]
TEXTS = [row["prompt"].strip() for row in ROWS]


def table(rows):
    return pa.Table.from_pylist(rows)


def write_dataset(folder, parts):
    """What `Dataset.save_to_disk` leaves, one file for each part."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink:
            with pa.ipc.new_stream(sink, table(rows).schema) as writer:
                writer.write_table(table(rows), max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def parquet(path, rows, **more):
    pq.write_table(table(rows), path, **more)
    return path


def form(tmp_path, kind):
    """ROWS in a file or folder of a kind."""
    path = tmp_path / f"p.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind.startswith("csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
        lines = text.getvalue()
    elif kind in ("json", "json.gz"):
        lines = json.dumps(ROWS, indent=1, ensure_ascii=False)
    elif kind == "wrapped.json":
        lines = json.dumps({"version": 12, "prompts": ROWS, "by": "me"}, indent=2)
    elif kind == "parquet":
        return parquet(path, ROWS)
    elif kind == "groups.parquet":
        return parquet(path, ROWS, row_group_size=1)
    elif kind == "dictionary.parquet":
        pq.write_table(table(ROWS).set_column(0, "prompt", pa.array(
            [row["prompt"] for row in ROWS]).dictionary_encode()), path)  # fmt: skip
        return path
    elif kind == "large.parquet":
        names = pa.array([row["prompt"] for row in ROWS], pa.large_string())
        pq.write_table(table(ROWS).set_column(0, "prompt", names), path)
        return path
    elif kind == "folder":
        path.mkdir()
        parquet(path / "part-1.parquet", ROWS[2:])
        parquet(path / "part-0.parquet", ROWS[:2])
        (path / "README.md").write_text("hi")
        return path
    elif kind == "dataset":
        return write_dataset(path, [ROWS[:3], ROWS[3:]])
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table(ROWS).schema) as out:
            out.write_table(table(ROWS), max_chunksize=1)
        return path
    data = lines.encode()
    path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return path


KINDS = (
    "jsonl csv json wrapped.json lines.json jsonl.gz csv.gz json.gz parquet groups.parquet "
    "dictionary.parquet large.parquet folder dataset arrow"
).split()


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_holds_the_same(tmp_path, kind, capsys):
    path = str(form(tmp_path, kind))
    rows = list(read_all(path))
    assert rows == TEXTS and [negative_of(row, "run's") for row in rows] == [
        "run's", "blur", "run's", "noise",
    ]  # fmt: skip
    assert [metadata_of(row) for row in rows] == [{"count": row["count"]} for row in ROWS]
    source = load_prompts(path, held_out_fraction=0)
    assert source.num_train == 4 and source.num_held_out == 3
    for epoch in range(3):
        drawn = source.train(epoch, 4, 0)
        # A text that stands there twice comes twice, each time with its own row.
        assert {(p, negative_of(p, "-"), metadata_of(p)["count"]) for p in drawn} == {
            (p, negative_of(p, "-"), metadata_of(p)["count"]) for p in rows
        }
    held = {str(p): metadata_of(p)["count"] for p in source.held_out(9, 0)}
    assert held == {TEXTS[0]: "1", TEXTS[1]: "2", TEXTS[2]: "3"}  # the first row of each text
    assert load_prompts(path, held_out_fraction=0).fingerprint == source.fingerprint
    assert list(source.first(2)) == TEXTS[:2]
    assert load_prompts("animals", eval_spec=path).num_held_out == 3
    assert not capsys.readouterr().out


def test_packed_text_has_the_fingerprint_of_the_plain(tmp_path):
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_text("one\ntwo\n")
    packed.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))  # of two members
    assert load_prompts(str(plain)).fingerprint == load_prompts(str(packed)).fingerprint


def test_json_lists_of_strings_longer_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(json_list, "_CHUNK", 7)
    monkeypatch.setattr(json_list, "_SHORT", 3)
    texts = ["é" * 30, "a ☃ [snow] \\ man,", 'he said "hi"', "x"]
    path = tmp_path / "p.json"
    for more in ({}, {"ensure_ascii": False}, {"indent": 3}):
        data = json.dumps(texts, **more)
        path.write_text("\ufeff  " + data + "\n \n", "utf-8")
        source = load_prompts(str(path), held_out_fraction=0)
        assert list(read_all(str(path))) == texts
        assert sorted(source.train(0, 4, 0)) == sorted(texts)
    nested = {"a": 12, "b": {"prompts": [1]}, "prompts": texts, "c": [0.5, None]}
    path.write_text(json.dumps(nested))
    assert list(read_all(str(path))) == texts


def test_metadata_may_be_anything(tmp_path):
    target = {"include": [{"class": "dog", "count": 2}], "tag": None}
    stamp = pa.array([1], pa.timestamp("ns"))
    pq.write_table(
        pa.table({"prompt": ["a"], "target": [target], "bytes": [b"\0\xff"], "when": stamp}),
        tmp_path / "p.parquet",
    )
    (prompt,) = load_prompts(str(tmp_path / "p.parquet"), held_out_fraction=0).train(0, 1, 0)
    found = metadata_of(prompt)
    assert found["target"] == target and found["bytes"] == b"\0\xff" and "1970" in found["when"]


def test_an_empty_negative_prompt(tmp_path):
    """Of a table of text it is none; where null can be written it is one that says nothing."""
    (tmp_path / "p.csv").write_text("prompt,Negative Prompt\na,\nb,blur\n")
    assert [negative_of(p, "run's") for p in read_all(str(tmp_path / "p.csv"))] == ["run's", "blur"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "negative_prompt": ""}\n')
    assert [negative_of(p, "run's") for p in read_all(str(tmp_path / "p.jsonl"))] == [""]


# --- columns


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("column", ["Prompt", "caption", "TEXT", "image caption"])
def test_the_only_plausible_column_is_taken_and_named(tmp_path, kind, column, capsys):
    path = columns_file(tmp_path, kind, {"id": "1", column: "a cat", "negative_prompt": "blur"})
    (prompt,) = read_all(path)
    assert prompt == "a cat" and metadata_of(prompt) == {"id": "1"} and prompt.negative == "blur"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and path in said[0] and f'"{column}"' in said[0]
    lines = []
    list(read_all(path, tell=lines.append))
    assert len(lines) == 1
    assert load_prompts(path, held_out_fraction=0).fingerprint == (
        load_prompts(path, held_out_fraction=0, column=column).fingerprint
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_prompt_comes_first_and_two_plausible_columns_are_refused(tmp_path, kind, capsys):
    path = columns_file(tmp_path, kind, {"caption": "b", "prompt": "a", "text": "c"})
    assert list(read_all(path)) == ["a"] and not capsys.readouterr().out
    assert list(read_all(path, "text")) == ["c"]
    path = columns_file(tmp_path, kind, {"caption": "b", "text": "c", "id": "1"})
    assert "caption, text" in error_of(path) and "--prompt-column" in error_of(path)
    assert 'Did you mean "caption"?' in error_of(path, "captoin")
    path = columns_file(tmp_path, kind, {"a": "b", "zz": "c"})
    assert "no " in error_of(path) and "a, zz" in error_of(path)


def test_a_table_with_one_column_of_text(tmp_path, capsys):
    pq.write_table(pa.table({"n": [1], "zz": ["a"]}), tmp_path / "p.parquet")
    assert list(read_all(str(tmp_path / "p.parquet"))) == ["a"]
    assert '"zz"' in capsys.readouterr().out
    assert "int64, not text" in error_of(str(tmp_path / "p.parquet"), "n")


def columns_file(tmp_path, kind, row):
    path = tmp_path / f"c.{kind}"
    if kind == "parquet":
        parquet(path, [row])
    elif kind == "csv":
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    else:
        path.write_text(json.dumps([row] if kind == "json" else row))
    return str(path)


def error_of(path, column=None):
    messages = []
    for call in (lambda: load_prompts(path, column=column), lambda: list(read_all(path, column))):
        with pytest.raises(InputError) as caught:
            call()
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0] and len(messages[0]) < 500
    return messages[0]


# --- folders


def test_splits(tmp_path, capsys):
    for split in ("train", "test"):
        write_dataset(tmp_path / "d" / split, [[{"prompt": f"of {split}"}]])
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    assert list(read_all(str(tmp_path / "d"))) == ["of train"]
    assert "train" in capsys.readouterr().out
    assert list(read_all(str(tmp_path / "d" / "test"))) == ["of test"]
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["test", "other"]}')
    assert "test, other" in error_of(str(tmp_path / "d"))

    (tmp_path / "f").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        parquet(tmp_path / "f" / f"{name}.parquet", [{"prompt": name}])
    assert len(list(read_all(str(tmp_path / "f")))) == 2
    assert "splits test, train" in capsys.readouterr().out
    (tmp_path / "g" / "data").mkdir(parents=True)
    parquet(tmp_path / "g" / "data" / "a.parquet", [{"prompt": "a"}])
    assert "data" in error_of(str(tmp_path / "g"))


def test_a_folder_that_leads_elsewhere(tmp_path):
    folder = write_dataset(tmp_path / "d", [[{"prompt": "a"}]])
    outside = write_dataset(tmp_path / "e", [[{"prompt": "b"}]]) / "data-00000-of-00001.arrow"
    for name in (str(outside), "../e/data-00000-of-00001.arrow", "..", "", 5, "a.parquet"):
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        assert "d" in error_of(str(folder))
    for text in ("", "[]", "{}", '{"_data_files": 3}', '{"_data_files": []}', "[" * 10_000):
        (folder / "state.json").write_text(text)
        assert "state.json" in error_of(str(folder))


def test_a_changed_file_is_refused(tmp_path):
    path = parquet(tmp_path / "p.parquet", ROWS)
    source = load_prompts(str(path), held_out_fraction=0)
    os.utime(path, (1, 1))
    assert len(source.train(0, 4, 0)) == 4
    parquet(path, ROWS[:3] + [{"prompt": "other"}])
    with pytest.raises(InputError, match="was changed"):
        source.train(0, 4, 0)


def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch):
    import sys

    path = parquet(tmp_path / "p.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "genpol[data]"' in error_of(str(path))


# --- fingerprints


def test_lists_with_something_beside_their_prompts(tmp_path):
    plain = load_prompts(["a", "b"], held_out_fraction=0)
    assert load_prompts([Prompt("a"), "b"], held_out_fraction=0).fingerprint == plain.fingerprint
    others = [
        load_prompts([Prompt("a", "blur"), "b"], held_out_fraction=0),
        load_prompts([Prompt("a", ""), "b"], held_out_fraction=0),
        load_prompts([Prompt("a", None, {"n": 1}), "b"], held_out_fraction=0),
        load_prompts([Prompt("a", None, {"n": 2}), "b"], held_out_fraction=0),
    ]
    assert len({one.fingerprint for one in (plain, *others)}) == 5
    assert metadata_of(next(p for p in others[2].train(0, 2, 0) if p == "a")) == {"n": 1}


def test_fingerprints_of_files_that_older_versions_read(tmp_path):
    """Of runs that are still to be resumed."""
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "id": 1}\n"b"\n')
    (tmp_path / "p.csv").write_text("id,caption\n1,a\n2,b\n")
    found = [
        load_prompts(str(tmp_path / f"p.{end}")).fingerprint for end in ("txt", "jsonl", "csv")
    ]
    assert found == ["73fd2f223b8e6a2d", "a412d84dc42cab74", "136eddb9ad83227a"]


# --- memory


@pytest.mark.parametrize(
    ("count", "groups"),
    [
        (6000, 200),
        (6000, 6000),
        pytest.param(100_000, 1000, marks=pytest.mark.slow),
        pytest.param(100_000, 100_000, marks=pytest.mark.slow),
    ],
)
def test_prompts_of_parquet_stream(tmp_path, count, groups):
    words = "a long prompt of the kind people write, masterpiece, trending, highly detailed"
    path = str(tmp_path / "p.parquet")
    pq.write_table(
        pa.table({"prompt": [f"{words}, number {i}" for i in range(count)], "n": range(count)}),
        path,
        row_group_size=groups,
    )
    load_prompts(path)  # whatever a first call allocates for good
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        source = load_prompts(path)
        held, peak = tracemalloc.get_traced_memory()
        drawn = source.train(0, 64, 0)
    finally:
        tracemalloc.stop()
    assert source.num_train + source.num_held_out == count
    assert all(str(prompt).endswith(f"number {metadata_of(prompt)['n']}") for prompt in drawn)
    # Of the text, 90 bytes a prompt, no more than a batch is ever there.
    assert held < 8 * count + 50_000 and peak < 4 * 8 * count + 250_000
    assert pa.total_allocated_bytes() <= before
