# ruff: noqa: E501
"""Malformed files of prompts: each is one bounded line, or is read."""

from __future__ import annotations

import gzip
import io
import json
import random
import time

import pytest
from malformed import LEAVES, LONGEST_LINE, byte_variants, json_variants, nested, refusal

from diffusion.errors import InputError
from diffusion.prompts.sources import load_prompts, read_all

pytestmark = pytest.mark.slow

TEXT = 'a cat\na dog\na "big", brown bear\n\ntwo owls é\n'.encode()
ROWS = [{"prompt": "a cat", "id": 1}, {"prompt": "a dog", "tags": ["x", {"y": None}]}, "two owls"]
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
TABLE = b'id,prompt\n1,a cat\n2,"a ""big"", dog"\n3,"two\nlines"\n4,an owl\n'


LIST = json.dumps(ROWS, indent=1).encode()
WRAPPED = json.dumps({"version": 1, "prompts": ROWS, "by": None}).encode()


def parquet(columns, **more):
    """Bytes of a Parquet file."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **more)
    return sink.getvalue()


def stream(columns):
    """Bytes of an Arrow stream, as the files of saved datasets."""
    pa = pytest.importorskip("pyarrow")
    sink, table = io.BytesIO(), pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def tables():
    """(suffix, bytes) of spoilt Parquet and Arrow files."""
    good = {"prompt": ["a cat", "a dog", "two owls"], "n": [1, 2, 3], "m": [[1], None, [2, 3]]}
    broken = [
        {"prompt": [1, 2]}, {"prompt": [None, None]}, {"prompt": ["a", None]}, {"prompt": [b"\xff"]},
        {"prompt": [["a"]]}, {"prompt": [{"text": "a"}]}, {"prompt": []}, {"prompt": [" ", ""]},
        {"prompt": ["x" * 2_000_000]}, {"prompt": ["a\0b"]}, {"a": ["x"], "b": ["y"]}, {"n": [1]},
        {"prompt": ["a"], "negative_prompt": [1]}, {"Prompt": ["a"], "text": ["b"]},
    ]  # fmt: skip
    for columns in broken:
        yield ".parquet", parquet(columns)
        yield ".arrow", stream(columns)
    for data in byte_variants(parquet(good), 5, 60):
        yield ".parquet", data
    for data in byte_variants(stream(good), 6, 60):
        yield ".arrow", data
    yield ".parquet", b"PAR1"
    yield ".parquet", b"PAR1" + b"\xff" * 8 + b"PAR1"


def packed():
    """(suffix, bytes) of spoilt .gz files and of texts that unpack to too much."""
    for data in byte_variants(gzip.compress(TEXT * 20), 7, 40):
        yield ".txt.gz", data
    for data in byte_variants(gzip.compress(LINES), 8, 20):
        yield ".jsonl.gz", data
    yield ".txt.gz", TEXT
    yield ".gz", gzip.compress(b"")
    yield ".csv.gz", gzip.compress(gzip.compress(TABLE))
    yield ".parquet.gz", gzip.compress(TEXT)
    yield ".txt.gz", gzip.compress(b"\0" * 2**24)
    yield ".json.gz", gzip.compress(b" " * 2**27)  # a bomb


def made_up(seed):
    """(suffix, bytes) of files that were never right."""
    draw = random.Random(seed)
    whole = [
        b"", b"\n\n  \n", b"\0", b"\0" * 10_000, b"\xff\xfea\0b\0", b"\xef\xbb\xbf", b"\x1f\x8b\x08\0",
        b"\x80abc\n", b"\xed\xa0\x80\n", b"a" * 2_000_000, b"\r", b"a\rb\rc", b"\x89PNG\r\n\x1a\n",
        b"prompt", b"prompt\n", b"prompt,prompt\na,b\n", b"id\n1\n", b'"prompt\na\n', b"prompt\na,b,c\n",
        b",,,\n,,,\n", b"x" * 100_000 + b"\n1\n", b"," * 100_000 + b"\n1\n", b'prompt\n"' + b"a" * 200_000,
        nested().encode(), nested(100_000).encode(), b'{"prompt": ' * 5000, b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\u0000"}', b'{"' + b"k" * 100_000 + b'": 1}', b'{"prompt": 1' + b"0" * 5000 + b"}",
        b"1" * 5000, b"NaN", b'["a"]', b'{"prompt": NaN}', draw.randbytes(5000),
    ]  # fmt: skip
    whole += [json.dumps({"prompt": leaf}).encode() for leaf in LEAVES]
    for data in whole:
        for suffix in (".txt", ".jsonl", ".json", ".csv", ".tsv"):
            yield suffix, data
    yield ".parquet", TEXT
    yield ".arrow", TEXT
    yield "." + "x" * 100, TEXT


def spoilt():
    for number, data in enumerate(byte_variants(TEXT, 1, 40)):
        yield (".txt", "")[number % 2], data
    for data in byte_variants(LINES, 2, 40):
        yield ".jsonl", data
    for text in json_variants(ROWS[1], 3, 60):
        yield ".jsonl", text.encode()
    for data in byte_variants(TABLE, 4, 40):
        yield ".csv", data
    for data in byte_variants(LIST, 9, 80):
        yield ".json", data
    for text in json_variants(json.loads(WRAPPED), 10, 80):
        yield ".json", text.encode()


def test_files_of_prompts(tmp_path):
    refused = []
    cases = [*made_up(0), *spoilt(), *tables(), *packed()]
    for number, (suffix, data) in enumerate(cases):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data)
        for read in (_train, _all):
            try:
                start = time.process_time()
                prompts = read(str(path))
                assert time.process_time() - start < 20
                assert prompts and all(isinstance(one, str) and one.strip() for one in prompts)
            except InputError as error:
                said = str(error)
                assert "\n" not in said and len(said) - len(str(path)) < 400, said[:1000]
                refused.append(path)
    assert len(cases) > 300 and len(set(refused)) > 150
    for path in sorted(set(refused))[::12]:
        words = ["finetune", "--reward", "jpeg_compressibility", "--prompts", str(path)]
        refusal([*words, "--output", str(tmp_path / "run")], tmp_path / "run")


def _train(path):
    source = load_prompts(path)
    return source.train(0, 3, 0) + source.held_out(3, 0)


def _all(path):
    return list(read_all(path))


@pytest.mark.parametrize(
    "name",
    ["x" * 300, "x" * 100_000, "\0", "a\0b", "/", ".", "", "~nobody/x", "/dev/zero", "\ud800"],
)
def test_names_that_are_no_files(name):
    with pytest.raises(InputError) as caught:
        load_prompts(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < LONGEST_LINE


@pytest.mark.parametrize("column", ["", "x" * 100_000, "\0", "id\n"])
def test_columns_that_are_not_there(column, tmp_path):
    for suffix, data in ((".csv", TABLE), (".jsonl", LINES)):
        path = tmp_path / f"prompts{suffix}"
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_prompts(str(path), column=column)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < LONGEST_LINE
