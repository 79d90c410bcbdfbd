"""The demo's page: well-formed, self-contained, with the run's numbers, from a made-up run."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from genpol.commands.demo.command import remove_earlier
from genpol.finetuning.page import write_page
from genpol.finetuning.report import (
    agreement,
    bootstrap,
    comparison,
    finetune_panels,
    read_run,
    unseen_share,
)
from genpol.finetuning.samples import PICTURES, read_evaluation, save_evaluation
from genpol.reports.page import Pair, Panel, mark, page, pairs, paragraph, table
from genpol.runs.metrics import MetricsCsv

VOID = {"meta", "img", "br", "link", "input", "hr"}
NASTY = 'a <script>alert("1")</script> & "red" circle'
N = 20


class Checker(HTMLParser):
    """Fails on unbalanced tags; collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data


def parsed(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def evaluation(gold, checker):
    """N images: gold right in `gold` of them, the training checker in `checker`."""
    right = {"gold": gold, "attributes_hard": checker, "gold_wholly": gold, "reward": checker}
    return SimpleNamespace(
        images=torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        prompts=[NASTY] + [f"scene {i}" for i in range(1, N)],
        rewards={name: (torch.arange(N) < count).float() for name, count in right.items()},
    )


@pytest.fixture
def run_folder(tmp_path):
    """What `genpol finetune` leaves: gold from 10 to 12 of 20, the training checker 10 to 15."""
    folder = tmp_path / "images"
    save_evaluation(folder / "samples", "before", evaluation(10, 10))
    save_evaluation(folder / "samples", "after", evaluation(12, 15))
    log = MetricsCsv(folder / "metrics.csv")
    log.log(0, {"eval/reward": 0.5, "eval/gold": 0.5})
    log.log(1, {"reward/mean": 0.55, "kl/nats": 1.0})
    log.log(2, {"reward/mean": 0.7, "kl/nats": 7.25, "eval/reward": 0.75, "eval/gold": 0.6})
    log.close()
    config = {
        **{"command": "finetune", "eval_images": 10, "prompts_per_epoch": 32},
        **{"images_per_prompt": 8, "num_inference_steps": 10, "guidance_scale": 1.0, "eta": 1.0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps({"train/epochs": 2.0, "time/seconds": 300.0}))
    return folder


def test_the_page_is_well_formed_self_contained_and_has_the_numbers(run_folder):
    html = page(finetune_panels(run_folder, "/models/tiny"))
    checker = parsed(html)
    assert not {"script", "link", "iframe", "object"} & set(checker.tags)
    assert "http" not in html.replace("http-equiv", "") and "@import" not in html
    sources = [value for name, value in checker.attributes if name in ("src", "href")]
    assert sources and all(s.startswith("data:image/png;base64,") for s in sources)
    assert len(sources) == 1 + 2 * PICTURES  # the curves, and both pictures of each prompt
    for expected in (
        *("512 pictures in 2 epochs", "5.0 minutes", "20 held-out prompts"),
        *("from 50.0% to 60.0%", "7.2 nats", "gain of +25.0 points", "one of +10.0"),
        *("60% of the gain", "load_lora_weights", "/models/tiny", "eta=1.0", "Generator()"),
        str((run_folder / "lora").resolve()),
    ):
        assert expected in checker.text, expected
    assert checker.text.count(NASTY) >= 1 and "<script>" not in html


def test_every_run_has_a_page(run_folder):
    """Of a finished run with controls, of one under way, and of an earlier version's folder."""
    save_evaluation(run_folder / "samples", "best_of_4", evaluation(11, 16))
    save_evaluation(run_folder / "samples", "guidance_3", evaluation(14, 14))
    html = write_page(run_folder).read_text("utf-8")
    checker = parsed(html)
    assert not {"script", "link", "iframe", "object"} & set(checker.tags)
    sources = [value for name, value in checker.attributes if name in ("src", "href")]
    assert sources and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "<script>" not in html and checker.text.count(NASTY) == 1
    for expected in (
        *("from 0.50 to 0.75, by +0.25", "62 % [41, 80] of the prompts", "untrained, guidance 3"),
        *("best of 4 (80 reward calls)", "asked the reward 512 times", "≤ 0.64", "5.0 minutes"),
        *("prompts per epoch", "genpol finetune --resume", "genpol generate"),
    ):
        assert expected in checker.text, expected
    for name in (
        "summary.json",
        "samples/evaluation_after.csv",
        "samples/evaluation_best_of_4.csv",
    ):
        (run_folder / name).unlink()
    words = parsed(write_page(run_folder).read_text("utf-8")).text
    assert "has done 2 of" in words and "untrained" not in words


@pytest.mark.parametrize(
    ("pipeline", "said", "not_said"),
    [
        (
            "FluxPipeline",
            "FluxPipeline.from_pretrained('m')\npipe.load_lora_weights(",
            "load_lora(",
        ),
        ("PixArtAlphaPipeline", "from diffusion import load_lora\nload_lora(pipe, ", "_weights"),
        ("SquaresPipeline", "The weights are in", "load_lora"),
    ],
    ids=["diffusers", "here", "neither"],
)
def test_the_page_says_how_a_lora_is_loaded_elsewhere(run_folder, pipeline, said, not_said):
    file = run_folder / "config.json"
    facts = {"model": "m", "pipeline_class": pipeline, "train": "lora"}
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    words = parsed(write_page(run_folder).read_text("utf-8")).text
    assert said in words and not_said not in words


def test_table_of_before_and_after(run_folder):
    text = parsed(comparison(read_run(run_folder))).text
    assert "60.0 [" in text and "+10.0 [" in text and "+25.0 [" in text


def test_a_checker_that_sees_no_gain_is_not_divided_by(tmp_path, run_folder):
    save_evaluation(run_folder / "samples", "after", evaluation(12, 10))
    assert "no gain" in agreement(read_run(run_folder))
    save_evaluation(run_folder / "samples", "after", evaluation(14, 12))
    assert "sees all of the gain" in agreement(read_run(run_folder))


def test_unseen_share_by_hand():
    assert unseen_share(0.20, 0.15) == pytest.approx(0.25)
    assert unseen_share(0.20, 0.20) == 0


def test_bootstrap_interval_covers_the_normal_one():
    values = np.arange(400) % 2.0  # mean 1/2, standard error 1/40
    low, high = bootstrap(lambda mean: mean, values)
    assert low == pytest.approx(0.5 - 1.96 / 40, abs=0.005)
    assert high == pytest.approx(0.5 + 1.96 / 40, abs=0.005)
    # Columns are resampled together: a constant difference has no width.
    low, high = bootstrap(lambda a, b: b - a, values, values + 1)
    assert (low, high) == pytest.approx((1.0, 1.0))


def test_evaluation_reads_back(tmp_path):
    result = evaluation(3, 7)
    scores = read_evaluation(save_evaluation(tmp_path, "before", result))
    assert scores.prompts == result.prompts
    assert list(scores.scores) == list(result.rewards)
    assert scores.scores["gold"].sum() == 3 and scores.scores["reward"].sum() == 7
    assert len(scores.pictures) == PICTURES < N
    first = np.asarray(Image.open(scores.pictures[0]))
    expected = (result.images[0].permute(1, 2, 0).numpy() * 255).round()
    assert (first == expected).all()


def test_every_helper_escapes():
    html = "\n".join(
        [
            paragraph(NASTY),
            table([NASTY, "b"], [[NASTY, "1"]]),
            pairs([Pair(NASTY, b"png", b"png", 0.5, 1.0)]),
        ]
    )
    checker = parsed(page([Panel(NASTY, html)], title=NASTY))
    assert "script" not in checker.tags
    assert checker.text.count(NASTY) == 7  # title twice, panel, paragraph, two cells, caption


def test_marks():
    assert "✓" in mark(1.0) and "67%" in mark(2 / 3) and mark(None) == ""


def test_only_an_earlier_demo_run_is_removed(tmp_path):
    for name, text in {
        "mine": '{"command": "finetune"}',
        "other": '{"command": "train"}',
        "list": "[1]",
        "broken": "{",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "photos").mkdir()
    for folder in [*tmp_path.iterdir(), tmp_path / "absent"]:
        remove_earlier(folder, "finetune")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "list", "other", "photos"]


@pytest.mark.parametrize(
    ("prompts", "said"), [("world", "world --num-prompts 16"), ("a.txt", "a.txt --output")]
)
def test_the_command_that_draws_says_how_many_prompts_of_a_generator(prompts, said, run_folder):
    from genpol.finetuning.page import weights
    from genpol.finetuning.record import read_run

    path = run_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"prompts": prompts}))
    assert f"--prompts {said}" in weights(read_run(run_folder))
