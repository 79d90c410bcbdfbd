"""Prompts that are too long: counted as each family's own encoding cuts them, and said once."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from tiny_families import FAMILIES, tiny

from diffusion.families import family_class
from diffusion.prompts import lengths
from diffusion.prompts.lengths import say_cuts_once, source_warnings, warnings_of_cuts
from diffusion.prompts.prompt import Prompt
from diffusion.prompts.sources import load_prompts

CPU = torch.device("cpu")


class Words:
    """Reads five words."""

    def reader(self):
        return None, 5

    def count_tokens(self, prompts):
        return [len(prompt.split()) for prompt in prompts]


def family_of(name, **more):
    pipe = tiny(name)
    return family_class(type(pipe).__name__)(pipe, **more)


# What --max-sequence-length is to be; None where the pipeline has no such option.
LENGTHS = {"sd": None, "sdxl": None, "sd3": None, "qwen_image": 200}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_counts_as_cut_where_encoding_cuts_it(name):
    """Of two prompts that differ at the end alone, the encodings are equal if that end is cut."""
    length = LENGTHS.get(name, 24)
    family = family_of(name) if length is None else family_of(name, max_sequence_length=length)
    _, limit = family.reader()
    empty = family.count_tokens([""])[0]
    fits = "a" * (limit - empty)
    assert family.count_tokens([fits]) == [limit]
    long = fits + "a" * 64  # also past what a pipeline writes after a prompt
    texts = [fits, fits[:-1] + "b", long, long[:-1] + "b"]
    rows = [family.encode([text], CPU)["text"] for text in texts]
    assert not same(rows[0], rows[1]), "what is within the limit is not read"
    assert same(rows[2], rows[3]), "what is past the limit is read"
    said = warnings_of_cuts(family, [fits, fits + "b"], 2)
    assert len(said) == 1 and f"1 of the 2 prompts is longer than the {limit} tokens" in said[0]


def same(one, other):
    return one.shape == other.shape and torch.equal(one, other)


def test_limits_follow_the_pipeline_and_the_option():
    assert family_of("flux").reader()[1] == 512 and family_of("sana").reader()[1] == 300
    assert family_of("pixart").reader()[1] == 120 and family_of("sd").reader()[1] == 16
    assert family_of("flux", max_sequence_length=40).reader()[1] == 40
    assert family_of("sd3").reader()[1] == 16  # no T5
    pipe = tiny("sd3")
    pipe.text_encoder_3, pipe.tokenizer_3 = tiny("flux").text_encoder_2, tiny("flux").tokenizer_2
    kind = family_class(type(pipe).__name__)
    assert kind(pipe).reader() == (pipe.tokenizer_3, 256)
    assert kind(pipe, max_sequence_length=1).reader() == (pipe.tokenizer, 16)


def test_the_line_names_how_many_the_longest_the_limit_and_an_example():
    texts = ["one two", "1 2 3 4 5", "1 2 3 4 5 6 7 8", "a b c d e f"]
    (line,) = warnings_of_cuts(Words(), texts, 4)
    assert "2 of the 4 prompts are longer than the 5 tokens" in line and "longest has 8" in line
    assert line.endswith('of "1 2 3 4 5 6 7 8" that is "6 7 8"')
    assert warnings_of_cuts(Words(), texts[:2]) == [] == warnings_of_cuts(Words(), [])
    (line,) = warnings_of_cuts(Words(), ["x\n" * 10_000])
    assert "\n" not in line and len(line) < 400


def test_only_the_first_are_counted_and_it_is_said(monkeypatch):
    monkeypatch.setattr(lengths, "MOST", 3)
    (line,) = warnings_of_cuts(Words(), iter(["a b c d e f"] * 9), 9)
    assert line.startswith("3 of the first 3 of 9 prompts are")


def test_negative_prompts():
    long, own = "1 2 3 4 5 6", Prompt("a", negative="a b c d e f g")
    (line,) = warnings_of_cuts(Words(), ["a", own, own], negative="blur")
    assert "1 of the 2 distinct negative prompts is" in line and "longest has 7" in line
    assert len(warnings_of_cuts(Words(), ["a", long], negative=long)) == 2
    (line,) = warnings_of_cuts(Words(), ["a", own])
    assert line.startswith("1 of the 2 prompts read have negative prompts") and "guidance" in line


def test_a_family_that_cannot_count_is_said():
    class Broken(Words):
        def count_tokens(self, prompts):
            raise KeyError("vocab")

    (line,) = warnings_of_cuts(Broken(), ["a"])
    assert "KeyError" in line and "not counted" in line


def test_sources(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a b c d e f\n" + "\n".join(f"prompt {i}" for i in range(50)))
    ask = {"drawn": 2, "evaluated": 2, "seed": 0, "negative": None}
    (line,) = source_warnings(Words(), load_prompts(str(path)), **ask)
    assert line.startswith("1 of the 51 prompts is")
    (line,) = source_warnings(Words(), load_prompts("animals", eval_spec=str(path)), **ask)
    assert line.startswith("1 of the 96 prompts is")
    (line,) = source_warnings(Words(), load_prompts("world-pairs"), **ask)
    assert line.startswith("256 of 256 prompts drawn are")

    class Own:
        num_train, num_held_out, held_out_is_train = None, None, False

        def train(self, epoch, n, seed):
            return ["a b c d e f"] * n

        held_out = staticmethod(lambda n, seed: ["a"] * n)

    (line,) = source_warnings(Words(), Own(), **ask)
    assert line.startswith("2 of 4 prompts drawn are")


def test_the_libraries_say_nothing_at_each_batch(caplog):
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    try:
        say_cuts_once()
        own = logging.getLogger("diffusers.pipelines.x")
        own.error("The following part of your input was truncated because CLIP: %s", ["x"])
        own.error("something else")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in said] == ["something else"]
    assert "truncated because" in inspect.getsource(type(tiny("sd")))
