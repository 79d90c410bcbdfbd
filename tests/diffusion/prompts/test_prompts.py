"""Prompt sources: every prompt once a pass, a split that stays put, and clear complaints."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.prompts.sources import (
    ANIMALS,
    GENERATORS,
    load_prompts,
    permute,
    prompt_hash,
    read_all,
    take,
)
from diffusion.world import scenes


@pytest.fixture
def write(tmp_path):
    """write(name, content) -> path, where content is bytes, text or lines."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(content) + "\n"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def epochs(source, count, n, seed=0):
    return [prompt for epoch in range(count) for prompt in source.train(epoch, n, seed)]


def error_of(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- order


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_permute_is_a_bijection_and_moves_with_the_key(size):
    places = np.arange(size)
    images = [permute(places, size, str(key)) for key in range(40)]
    for image in images:
        np.testing.assert_array_equal(np.sort(image), places)
    np.testing.assert_array_equal(images[0], permute(places, size, "0"))
    if size > 1:
        assert len({tuple(image) for image in images}) > 1
    one_by_one = [permute(places[i : i + 1], size, "0")[0] for i in places]
    np.testing.assert_array_equal(one_by_one, images[0])


def test_permute_sends_each_place_everywhere():
    images = np.stack([permute(np.arange(10), 10, str(key)) for key in range(2000)])
    for column in images.T:
        counts = np.bincount(column, minlength=10)
        assert abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)


@pytest.mark.parametrize(("size", "n"), [(1, 4), (5, 5), (7, 3), (10, 4), (64, 32), (45, 100)])
def test_every_prompt_once_per_pass(write, size, n):
    prompts = [f"prompt {i}" for i in range(size)]
    source = load_prompts(write("p.txt", prompts), held_out_fraction=0)
    assert source.num_train == size
    passes = 6
    drawn = epochs(source, -(-passes * size // n), n, seed=3)
    orders = [drawn[k * size : (k + 1) * size] for k in range(passes)]
    for order in orders:
        assert sorted(order) == sorted(prompts)
    assert size < 5 or len({tuple(order) for order in orders}) == passes


def test_an_epoch_depends_on_nothing_but_epoch_n_and_seed(write):
    path = write("p.txt", [f"prompt {i}" for i in range(50)])
    first, second = load_prompts(path), load_prompts(path)
    in_order = [first.train(epoch, 8, 1) for epoch in range(9)]
    assert second.train(8, 8, 1) == in_order[8]
    assert second.train(2, 8, 1) == in_order[2]
    assert first.train(0, 8, 2) != in_order[0]
    assert all(len(epoch) == 8 for epoch in in_order)


def test_a_line_given_twice_is_drawn_twice_a_pass(write):
    source = load_prompts(write("p.txt", ["a", "b", "a", "c"]), held_out_fraction=0)
    assert Counter(source.train(0, 4, 0)) == {"a": 2, "b": 1, "c": 1}
    assert sorted(source.held_out(9, 0)) == ["a", "b", "c"]


# --- the split


def test_split_is_disjoint_complete_and_about_the_fraction(write):
    prompts = [f"prompt {i}" for i in range(2000)]
    source = load_prompts(write("p.txt", prompts), held_out_fraction=0.2)
    assert not source.held_out_is_train
    train, held = source.train(0, source.num_train, 0), source.held_out(2000, 0)
    assert sorted(train + held) == sorted(prompts)
    assert abs(len(held) - 400) < 5 * np.sqrt(2000 * 0.2 * 0.8)
    assert source.num_held_out == len(held)
    assert source.held_out(30, 0) == held[:30]
    assert source.held_out(30, 1) != held[:30]


def test_duplicates_do_not_straddle_the_split_and_held_out_ones_do_not_repeat(write):
    prompts = [
        form.format(i) for form in ("A  Big prompt {}", "a big PROMPT\t{} ") for i in range(300)
    ]
    source = load_prompts(write("p.txt", prompts), held_out_fraction=0.3)
    train = {prompt_hash(prompt) for prompt in source.train(0, source.num_train, 0)}
    held = [prompt_hash(prompt) for prompt in source.held_out(600, 0)]
    assert not train & set(held)
    assert len(held) == len(set(held)) == source.num_held_out
    assert len(train) + len(held) == 300
    assert source.num_train == 2 * len(train)


def test_split_does_not_move_when_lines_are_added(write):
    lines = [f"prompt {i}" for i in range(400)]
    before = load_prompts(write("a.txt", lines[:200]))
    after = load_prompts(write("b.txt", lines[::-1]))
    held_before, held_after = set(before.held_out(400, 0)), set(after.held_out(400, 0))
    assert held_before == held_after & set(lines[:200])


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_a_short_file_still_has_both_sides(write, fraction):
    prompts = ["a cat", "a dog", "a fox"]
    source = load_prompts(write("p.txt", prompts), held_out_fraction=fraction)
    by_hash = sorted(prompts, key=prompt_hash)
    held = by_hash[:1] if fraction < 0.5 else by_hash[:2]
    assert sorted(source.held_out(3, 0)) == sorted(held)
    assert set(source.train(0, 6, 0)) == set(prompts) - set(held)


def test_one_distinct_prompt_cannot_be_split(write):
    path = write("p.txt", ["a cat", "A  cat"])
    message = error_of(load_prompts, path)
    assert "--held-out 0" in message and "--eval-prompts FILE" in message
    source = load_prompts(path, held_out_fraction=0)
    assert source.held_out_is_train
    assert source.held_out(5, 0) == ["a cat"]
    assert load_prompts(path, eval_spec="animals").num_train == 2


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fraction_out_of_range(fraction):
    assert "[0, 1)" in error_of(load_prompts, "animals", held_out_fraction=fraction)


def test_evaluation_prompts_of_their_own(write):
    path = write("p.txt", ["one", "two", "three", "FOUR"])
    evaluation = write("e.jsonl", ['{"prompt": "four"}', '"five"', '"Five"'])
    source = load_prompts(path, eval_spec=evaluation)
    assert not source.held_out_is_train
    assert sorted(source.train(0, 3, 0)) == ["one", "three", "two"]
    assert sorted(source.held_out(9, 0)) == ["five", "four"]
    assert (source.num_train, source.num_held_out) == (3, 2)
    assert "evaluation" in error_of(load_prompts, path, eval_spec=path)


def test_evaluation_on_the_world_keeps_its_held_out_scenes_from_training(write):
    rng = np.random.default_rng(0)
    mine, theirs = scenes.sample_caption(rng, False), scenes.sample_caption(rng, True)
    path = write("p.txt", [mine, theirs, theirs.upper(), "a cat"])
    source = load_prompts(path, eval_spec="world")
    assert sorted(source.train(0, 2, 0)) == sorted([mine, "a cat"])
    assert all(scenes.is_held_out(caption) for caption in source.held_out(20, 0))


# --- named generators


def test_world_draws_from_its_own_split():
    source = load_prompts("world")
    assert source.num_train is None and source.num_held_out is None
    train = [caption for epoch in range(3) for caption in source.train(epoch, 100, 5)]
    held = source.held_out(400, 5)
    assert len(held) == len(set(held)) == 400 and len(train) == 300
    assert not any(scenes.is_held_out(caption) for caption in train)
    assert all(scenes.is_held_out(caption) for caption in held)
    assert source.train(1, 100, 5) == train[100:200] != source.train(1, 100, 6)
    assert train[:100] != train[100:200]
    assert load_prompts("world").held_out(40, 5) == held[:40]


def test_world_hash_is_the_one_files_are_split_by(write):
    rng = np.random.default_rng(1)
    captions = list({scenes.sample_scene(rng).caption() for _ in range(500)})
    source = load_prompts(write("p.txt", captions))
    held = {caption for caption in captions if scenes.is_held_out(caption)}
    assert set(source.held_out(500, 0)) == held


@pytest.mark.parametrize(("name", "pairs"), [("world-lone", False), ("world-pairs", True)])
def test_worlds_of_one_kind(name, pairs):
    source = load_prompts(name)
    for caption in source.train(0, 50, 0) + source.held_out(50, 0):
        assert (scenes.parse_caption(caption).second is not None) == pairs


def test_fewer_where_the_world_has_fewer():
    held = load_prompts("world-lone").held_out(500, 0)
    lone = [
        scenes.Scene(scenes.Thing(*words), None, place).caption()
        for words in np.stack(
            np.meshgrid(scenes.SIZES, scenes.TEXTURES, scenes.COLOURS, scenes.SHAPES), -1
        ).reshape(-1, 4)
        for place in scenes.POSITIONS
    ]
    assert sorted(held) == sorted(caption for caption in lone if scenes.is_held_out(caption))


def test_world_honours_the_fraction(write):
    held = load_prompts("world", held_out_fraction=0.4).held_out(300, 0)
    assert all(scenes.is_held_out(caption, 0.4) for caption in held)
    assert not all(scenes.is_held_out(caption, 0.3) for caption in held)
    unsplit = load_prompts("world", held_out_fraction=0)
    assert unsplit.held_out_is_train and len(unsplit.held_out(10, 0)) == 10
    apart = load_prompts("world", eval_spec=write("e.txt", held))
    assert not set(apart.train(0, 500, 0)) & set(held)
    nowhere = load_prompts("world-lone", held_out_fraction=1e-12)
    assert "held-out share" in error_of(nowhere.held_out, 5, 0)


def test_animals_are_the_45_and_split():
    assert len(set(ANIMALS)) == 45
    assert ANIMALS[0] == "cat" and ANIMALS[-1] == "kangaroo"
    source = load_prompts("animals")
    held = source.held_out(45, 0)
    assert 1 <= len(held) == source.num_held_out <= 12
    assert sorted(held + source.train(0, source.num_train, 0)) == sorted(ANIMALS)


def test_take():
    assert take("world", 6, 7) == load_prompts("world").held_out(6, 7)
    assert "held-out prompts, not the 46" in error_of(take, "animals", 46, 0)


def test_take_refuses_a_file(write):
    assert "leave out --num-prompts" in error_of(take, write("p.txt", ["a cat"]), 1, 0)


@pytest.mark.parametrize("name", GENERATORS)
def test_read_all_refuses_generators(name):
    assert "--num-prompts" in error_of(read_all, name)


# --- formats

TRICKY = ['a cat, "sleepy"', "two\nlines", "three\r\n\nlines, now", "a dög ☃", "  padded  ", "end"]


def write_table(path, delimiter, bom=b"", line_end="\n"):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
        writer.writerow(["id", "caption", "note"])
        writer.writerows([i, prompt, "x\ny"] for i, prompt in enumerate(TRICKY))
    content = path.read_bytes()
    path.write_bytes(bom + content)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
def test_tables_with_newlines_inside_fields(tmp_path, suffix, line_end, bom):
    path = tmp_path / f"p{suffix}"
    write_table(path, "\t" if suffix == ".tsv" else ",", bom, line_end)
    expected = [prompt.strip() for prompt in TRICKY]
    assert list(read_all(str(path), "caption")) == expected
    source = load_prompts(str(path), column="caption", held_out_fraction=0.4)
    both = source.train(0, source.num_train, 0) + source.held_out(9, 0)
    assert sorted(both) == sorted(expected)


def test_json_lines_of_objects_and_strings(write):
    lines = [json.dumps({"text": "two\nlines", "id": 1}), "", json.dumps("bäre"), '{"text": " "}']
    path = write("p.jsonl", "\ufeff" + "\r\n".join(lines))
    assert list(read_all(path, "text")) == ["two\nlines", "bäre"]
    source = load_prompts(path, column="text", held_out_fraction=0)
    assert sorted(source.train(5, 2, 0)) == ["bäre", "two\nlines"]


def test_text_in_file_order_without_blank_lines(write):
    path = write("p.txt", "\ufeffzebra\r\n\r\n  \n a cat \nzebra\u2028stripes\nzebra")
    expected = ["zebra", "a cat", "zebra\u2028stripes", "zebra"]
    assert list(read_all(path)) == expected
    source = load_prompts(path, held_out_fraction=0)
    assert sorted(source.train(0, 4, 0)) == sorted(expected)


def test_works_from_another_folder(write, tmp_path, monkeypatch):
    write("p.txt", ["a", "b"])
    monkeypatch.chdir(tmp_path)
    source = load_prompts("p.txt", held_out_fraction=0)
    monkeypatch.chdir("/")
    assert sorted(source.train(0, 2, 0)) == ["a", "b"] and source.name == "p.txt"


# --- fingerprint and a file that changes


def test_fingerprint_follows_content_and_settings(write):
    path = write("p.txt", ["a", "b", "c"])
    known = load_prompts(path).fingerprint
    assert len(known) == 16 and int(known, 16) >= 0
    assert load_prompts(write("copy.txt", ["a", "b", "c"])).fingerprint == known
    others = [
        load_prompts(write("q.txt", ["a", "b", "d"])).fingerprint,
        load_prompts(path, held_out_fraction=0.2).fingerprint,
        load_prompts(path, eval_spec="animals").fingerprint,
        load_prompts(path, eval_spec="world").fingerprint,
        *(load_prompts(name).fingerprint for name in GENERATORS),
    ]
    assert len({known, *others}) == 9


def test_a_file_that_changes_under_a_run_is_refused(write):
    path = write("p.txt", ["one", "two", "three"])
    source = load_prompts(path, held_out_fraction=0)
    os.utime(path, (1, 1))  # touched, not changed
    assert sorted(source.train(0, 3, 0)) == ["one", "three", "two"]
    write("p.txt", ["four", "two", "three"])
    assert "was changed" in error_of(source.train, 1, 3, 0)
    os.remove(path)
    assert "cannot be read" in error_of(source.train, 1, 3, 0)


# --- memory


def test_100_000_prompts_cost_8_bytes_each(write):
    count = 100_000
    words = "a long prompt of the kind people write, masterpiece, trending, highly detailed"
    path = write("p.txt", [f"{words}, number {i}" for i in range(count)])
    load_prompts("animals")  # whatever a first call allocates for good
    tracemalloc.start()
    try:
        source = load_prompts(path)
        held, peak = tracemalloc.get_traced_memory()
        source.train(0, 64, 0)
        source.held_out(64, 0)
        later, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert source.num_train + source.num_held_out == count
    assert held < 8 * count + 50_000
    assert later < 8 * count + 50_000
    assert peak < 4 * 8 * count  # the text alone is 90 bytes a prompt


# --- bad input


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["empty.txt", "no prompts"]),
        ("blank.txt", b"\n  \r\n\n", ["no prompts"]),
        ("empty.csv", b"", ["no prompts"]),
        ("header.csv", b"id,prompt\n", ["no prompts"]),
        ("empty.jsonl", b"\n", ["no prompts"]),
        ("latin.txt", b"one\nna\xefve\n", ["line 2", "not UTF-8 at byte 6", "save"]),
        ("latin.csv", b"prompt\none\n\xe9\n", ["line 3", "not UTF-8 at byte 11"]),
        ("wide.txt", "one\ntwo".encode("utf-16"), ["UTF-16", "line 1"]),
        ("wide2.txt", "one\ntwo".encode("utf-16-le"), ["NUL at byte 1"]),
        ("nul.txt", b"one\ntw\0o\n", ["line 2", "NUL at byte 6"]),
        ("mac.txt", b"one\rtwo\rthree", ["carriage return"]),
        ("long.txt", b"x" * (2**20 + 1), ["longer than 1 MiB"]),
        ("p.csv", b"id,promt,x\n1,a,b\n", ['no column "prompt"', 'mean "promt"', "id, promt, x"]),
        ("p.csv", b"id,zzz\n1,a\n", ['no column "prompt"', "id, zzz"]),
        ("p.csv", b'"a\nb",zzz\n1,a\n', ['no column "prompt"', r"a\nb, zzz"]),
        ("p.csv", b"id,prompt\n1,a cat, asleep\n", ["line 2", "3 fields", "2", "quotes"]),
        ("p.csv", b"id,prompt\n1,a\n2\n", ["line 3", "1 fields", "2"]),
        ("p.csv", b'prompt\nok\n"left open\nmore\n', ["line 3", "quote"]),
        ("p.jsonl", b'"a"\n{"prompt": \n', ["line 2", "not JSON"]),
        ("p.jsonl", b'{"promt": "a"}\n', ["line 1", 'no key "prompt"', 'mean "promt"']),
        ("p.jsonl", b'{"prompt": null}\n', ["line 1", "null"]),
        ("p.jsonl", b'["a", "b"]\n', ["line 1", "list"]),
        ("p.jsonl", b'{"prompt": "a\\u0000b"}\n', ["line 1", "NUL"]),
        ("p.jsonl", b'{"prompt": "\\ud800"}\n', ["line 1", "surrogate"]),
        ("deep.jsonl", b"[" * 200_000, ["line 1", "not JSON"]),
        ("p.yaml", b"- a\n", [".yaml", ".jsonl", ".parquet"]),
    ],
)
def test_a_bad_file_is_one_clear_line(write, name, content, words):
    path = write(name, content)
    message = error_of(load_prompts, path)
    assert all(word in message for word in [path, *words]), message
    assert error_of(lambda: list(read_all(path))) == message


def test_what_is_neither_a_file_nor_a_generator(tmp_path):
    for call in (load_prompts, read_all, lambda spec: take(spec, 1, 0)):
        assert 'mean "world"' in error_of(call, "wrold")
    message = error_of(load_prompts, str(tmp_path / "missing.txt"))
    assert "no file" in message and "no generator" in message and "animals" in message
    for spec in ("", "a photo\nof a cat", "x" * 5000, "nul\0"):
        assert "no file" in error_of(load_prompts, spec)
    assert "folder" in error_of(load_prompts, str(tmp_path))


def test_a_pipe_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    assert "not a regular file" in error_of(load_prompts, str(tmp_path / "pipe.txt"))
