"""Files of preferences: every layout gives the same pairs, streamed, and what is wrong is named."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pair_files
import pytest
import torch

from diffusion.errors import InputError
from diffusion.preferences.images import read_image
from diffusion.preferences.layouts import layout_of
from diffusion.preferences.source import load_pairs
from diffusion.prompts.sources import load_prompts

SIZE = (16, 16)


def all_pairs(source):
    both = [*source.train_pairs(0, source.num_train, 0)]
    if not source.held_out_is_train:
        both += source.held_out_pairs(source.num_held_out, 0)
    return sorted(both, key=lambda pair: int(pair.prompt.rsplit(" ")[-1]))


@pytest.fixture(
    params=["jsonl", "jsonl.gz", "pick_a_pic", "hpd", "generic", "folder", "pattern"],
)
def spec(request, tmp_path):
    """Twelve pairs in one of the layouts; the chosen image is the light one."""
    kind = request.param
    if kind.startswith("jsonl"):
        return kind, str(pair_files.pair_file(tmp_path, name=f"pairs.{kind}"))
    pytest.importorskip("pyarrow")
    if kind in ("folder", "pattern"):
        (tmp_path / "data").mkdir()
        for first in (0, 6):
            rows = pair_files.pick_a_pic(6, first)[: 8 if first else 6]
            pair_files.parquet(tmp_path / "data" / f"train-{first}.parquet", rows)
        if kind == "folder":
            return kind, str(tmp_path)
        pair_files.parquet(tmp_path / "data" / "test-0.parquet", pair_files.pick_a_pic(3, 20))
        return kind, str(tmp_path / "data" / "train-*.parquet")
    rows = getattr(pair_files, kind)()
    return kind, str(pair_files.parquet(tmp_path / "pairs.parquet", rows))


def test_every_layout_gives_the_same_pairs(spec):
    kind, path = spec
    source = load_pairs(path, held_out_fraction=0.3)
    assert source.num_train + source.num_held_out == 12 and source.num_held_out >= 1
    pairs = all_pairs(source)
    assert [str(pair.prompt) for pair in pairs] == pair_files.prompts(12)
    for pair in pairs:
        chosen, rejected = pair.images(SIZE)
        assert chosen.mean() > 0.55 and rejected.mean() < 0.45 and chosen.shape == (3, 16, 16)
    if kind == "generic" or kind.startswith("jsonl"):
        assert [pair.prompt.metadata["votes"] for pair in pairs] == list(range(12))
    if kind == "pick_a_pic":
        assert pairs[3].prompt.metadata["ranking_id"] == 3
    if kind in ("pick_a_pic", "folder", "pattern"):
        assert "1 ties, 1 without a label" in source.about
        assert '"caption"' in source.about and '"jpg_0" and "jpg_1"' in source.about


def test_the_split_is_that_of_prompts(tmp_path):
    path = pair_files.pair_file(tmp_path, 40)
    words = tmp_path / "prompts.txt"
    words.write_text("\n".join(pair_files.prompts(40)))
    source, prompts = load_pairs(str(path)), load_prompts(str(words))
    held = {str(p.prompt) for p in source.held_out_pairs(40, 0)}
    assert held == set(prompts.held_out(40, 0)) and 0 < len(held) < 20
    assert not held & {str(p.prompt) for p in source.train_pairs(0, 200, 0)}
    assert set(source.held_out(40, 0)) == held
    assert len(source.held_out(2, 0)) == 2


def test_an_epoch_is_a_function_of_seed_and_number_and_a_pass_has_every_pair_once(tmp_path):
    path = str(pair_files.pair_file(tmp_path, 12))
    source = load_pairs(path, held_out_fraction=0)
    assert source.held_out_is_train and "none held out" in source.about
    one = [[str(p.prompt) for p in source.train_pairs(e, 4, 3)] for e in range(6)]
    again = load_pairs(path, held_out_fraction=0)
    assert one == [[str(p.prompt) for p in again.train_pairs(e, 4, 3)] for e in range(6)]
    assert sorted(sum(one[:3], [])) == sorted(sum(one[3:], [])) == sorted(pair_files.prompts(12))
    assert one[:3] != one[3:]
    other = [[str(p.prompt) for p in source.train_pairs(e, 4, 4)] for e in range(3)]
    assert other != one[:3]
    assert source.fingerprint == again.fingerprint
    assert source.fingerprint != load_pairs(path, held_out_fraction=0.2).fingerprint


def test_prompts_of_an_evaluation_are_drawn_and_their_pairs_are_the_ones_held_out(tmp_path):
    path = str(pair_files.pair_file(tmp_path, 12))
    words = tmp_path / "eval.txt"
    words.write_text("Thing  3\nsomething else\n")
    source = load_pairs(path, eval_spec=str(words), held_out_fraction=0.3)
    assert sorted(source.held_out(5, 0)) == ["Thing  3", "something else"]
    assert [p.prompt for p in source.held_out_pairs(9, 0)] == ["thing 3"]
    assert source.num_train == 11
    words.write_text("something else\n")  # where no pair is of these prompts, the hash decides
    other = load_pairs(path, eval_spec=str(words), held_out_fraction=0.3)
    assert other.held_out(5, 0) == ["something else"] and other.num_held_out > 1
    assert other.fingerprint != source.fingerprint
    words.write_text("\n".join(pair_files.prompts(12)))
    with pytest.raises(InputError, match="each of its prompts is also one of the evaluation"):
        load_pairs(path, eval_spec=str(words))


def test_a_list_of_images_with_ranks_gives_the_best_and_the_worst(tmp_path):
    pair_files.pair_file(tmp_path, 3)
    names = [f"images/{i}-chosen.png" for i in range(3)]
    rows = [{"Prompt": f"p{i}", "images": names, "rank": [2, 3, 1]} for i in range(2)]
    path = tmp_path / "ranked.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    pair = next(load_pairs(str(path)).train_pairs(0, 1, 0))
    assert pair.chosen.endswith(names[2]) and pair.rejected.endswith(names[1])


def test_named_columns_win_over_those_that_are_known():
    names = ["prompt", "chosen", "rejected", "a", "b", "c"]
    assert layout_of(names, None, "x").images == ("chosen", "rejected")
    assert layout_of(names, "a,b,c", "x").images == ("b", "c")
    assert layout_of(["Caption", "IMAGE1", "image2", "label_1", "label_2"], None, "x").prompt == (
        "Caption"
    )
    with pytest.raises(InputError, match="--pair-columns.*d,e.*Its columns: prompt"):
        layout_of(names, "d,e", "x")
    with pytest.raises(InputError, match="--pair-columns PROMPT,CHOSEN,REJECTED.*one, two"):
        layout_of(["one", "two"], None, "x")


BAD = {
    "not json": ("{", "line 3: not JSON"),
    "a list": ("[1]", "line 3: a list"),
    "no key": ('{"prompt": "x", "chosen": "images/0-chosen.png"}', 'line 3: no key "rejected"'),
    "a number": ('{"prompt": 3, "chosen": "a", "rejected": "b"}', "line 3.*int, not a string"),
    "no image": ('{"prompt": "x", "chosen": "a.png", "rejected": "b.png"}', "no image.*a.png"),
    "null": ('{"prompt": "x", "chosen": null, "rejected": "b"}', "line 3: an image is None"),
    "address": ('{"prompt": "x", "chosen": "https://x/y.png", "rejected": "b"}', "the address"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named(case, tmp_path):
    path = pair_files.pair_file(tmp_path, 4)
    lines = path.read_text().splitlines()
    lines[2] = BAD[case][0]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=BAD[case][1]) as error:
        load_pairs(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_bad_image_is_named_by_its_row(tmp_path):
    path = pair_files.pair_file(tmp_path, 4)
    (tmp_path / "images" / "2-chosen.png").write_bytes(pair_files.encoded(3)[:-40])
    source = load_pairs(str(path), held_out_fraction=0)
    with pytest.raises(InputError, match=r"pairs.jsonl, byte \d+, the chosen image is no image"):
        for pair in source.train_pairs(0, 4, 0):
            pair.images(SIZE)
    pytest.importorskip("pyarrow")
    rows = pair_files.generic(6)
    rows[4]["rejected"] = {"bytes": None, "path": None}
    broken = pair_files.parquet(tmp_path / "broken.parquet", rows)
    source = load_pairs(str(broken), held_out_fraction=0)
    with pytest.raises(InputError, match=r"broken.parquet, row 5: an image is None"):
        list(source.train_pairs(0, 6, 0))


def test_rows_that_teach_nothing_are_counted_and_a_file_of_them_is_refused(tmp_path):
    path = pair_files.pair_file(tmp_path, 4)
    text = path.read_text()
    same = {"prompt": "x", "chosen": "images/0-chosen.png", "rejected": "images/0-chosen.png"}
    empty = {"prompt": " ", "chosen": "images/0-chosen.png", "rejected": "images/1-chosen.png"}
    path.write_text(text + json.dumps(same) + "\n\n" + json.dumps(empty) + "\n")
    about = load_pairs(str(path)).about
    assert about.endswith("skipped: 1 of one image twice, 1 without a prompt")
    path.write_text(json.dumps(same) + "\n")
    with pytest.raises(InputError, match="no pair to train on; skipped: 1 of one image twice"):
        load_pairs(str(path))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_changes_while_in_use_is_refused(kind, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        path = pair_files.parquet(tmp_path / "pairs.parquet", pair_files.generic(6))
    else:
        path = pair_files.pair_file(tmp_path, 6)
    source = load_pairs(str(path))
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(InputError, match="changed while in use"):
        list(source.train_pairs(0, 2, 0))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "there is no such file"),
        ("pairs.json", b"[]", "jq -c"),
        ("pairs.csv", b"a,b", "a file of another kind"),
        ("empty.jsonl", b"\n", "holds no pairs"),
        ("torn.parquet", b"PAR1", "cannot be read as parquet"),
        ("torn.jsonl.gz", b"\x1f\x8b\x08", "is it whole"),
        ("folder", "folder", "a folder without .parquet files"),
        ("long.jsonl", b"x" * 2_000_000, "longer than 1 MiB"),
        ("latin.jsonl", b'{"prompt": "\xe4"}', "not UTF-8"),
    ],
)
def test_what_is_no_file_of_pairs_is_one_line(name, content, said, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        load_pairs(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    import sys

    path = tmp_path / "pairs.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r'pip install "genpol\[data\]"'):
        load_pairs(str(path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_memory_does_not_grow_with_the_rows(kind, tmp_path):
    """100,000 rows: an index of 16 bytes each, and what a slice of them needs."""
    count, image = 100_000, pair_files.encoded(3)
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        path, same = tmp_path / "many.parquet", pyarrow.array(np.zeros(count, np.int64))
        table = pyarrow.table(
            {
                "prompt": [f"thing {i}" for i in range(count)],
                "chosen": pyarrow.array([image]).take(same),
                "rejected": pyarrow.array([image]).take(same),
            }
        )
        pytest.importorskip("pyarrow.parquet").write_table(
            table, path, row_group_size=1000, use_dictionary=False
        )
        del table
        before = pyarrow.total_allocated_bytes()
    else:
        path, row = pair_files.pair_file(tmp_path, 1), {"rejected": "images/0-rejected.png"}
        row["chosen"] = "images/0-chosen.png"
        with open(path, "w") as file:
            file.writelines(json.dumps(row | {"prompt": f"thing {i}"}) + "\n" for i in range(count))
    tracemalloc.start()
    source = load_pairs(str(path))
    pairs = list(source.train_pairs(7, 8, 0))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 8 and source.num_train + source.num_held_out == count
    assert peak < 60e6 and kept < 5e6  # the images alone are 170 MB
    if kind == "parquet":
        assert pyarrow.total_allocated_bytes() - before < 10e6


# ------------------------------------------------------------------------------------------ images


def test_an_image_of_another_size_is_scaled_and_its_centre_kept():
    from PIL import Image

    wide = Image.new("RGB", (64, 32), "blue")
    wide.paste(Image.new("RGB", (32, 32), "red"), (16, 0))
    found = read_image(png(wide), (16, 16), "x")
    expected = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 16, 16)
    torch.testing.assert_close(found[..., 2:-2], expected[..., 2:-2], atol=0.01, rtol=0)
    exact = pair_files.picture(100)
    found = read_image(png(exact), SIZE, "x")
    assert torch.equal((found * 255).round().byte().permute(1, 2, 0), torch.tensor(np.array(exact)))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_usual_mode_becomes_rgb(mode):
    from PIL import Image

    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = Image.new("RGB", (16, 16), "white").convert(mode)
    if mode in ("RGBA", "LA"):  # transparent black is white paper
        image = Image.new(mode, (16, 16), (0,) * len(mode))
    assert read_image(png(image, kind), SIZE, "x").mean() > 0.98


def png(image, kind="PNG") -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def test_webp_and_jpeg_are_read_and_what_is_turned_is_turned_back(tmp_path):
    from PIL import Image

    for kind in ("WEBP", "JPEG"):
        assert abs(read_image(pair_files.encoded(170, kind), SIZE, "x").mean() - 0.67) < 0.05
    image = Image.new("RGB", (16, 16), "black")
    image.paste(Image.new("RGB", (16, 8), "white"), (0, 0))
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    path = tmp_path / "turned.jpg"
    image.save(path, exif=exif)
    found = read_image(str(path), SIZE, "x")
    assert found[:, :7].mean() < 0.1 < 0.9 < found[:, 9:].mean()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""
    import struct
    import zlib

    data = bytearray(png(pair_files.picture(1)))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bomb(), "pixels|bomb"),
        (b"", "no image"),
        (b"GIF89a" + b"\0" * 50, "no image"),
        (pair_files.encoded(1)[:100], "no image"),
        ("nowhere.png", "cannot be read"),
        ("/", "no image file"),
    ],
)
def test_what_is_no_usable_image_is_one_line(data, said):
    with pytest.raises(InputError, match=said) as error:
        read_image(data, SIZE, "pairs.jsonl, line 3")
    assert "\n" not in str(error.value) and str(error.value).startswith("pairs.jsonl, line 3")


def test_sixteen_bits_are_refused():
    from PIL import Image

    image = Image.fromarray(np.full((16, 16), 40_000, np.uint16))
    with pytest.raises(InputError, match="8 bits a channel"):
        read_image(png(image), SIZE, "x")
