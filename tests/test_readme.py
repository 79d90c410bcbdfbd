"""The pages' figures are those of the committed files, and their links lead somewhere."""

from __future__ import annotations

import csv
import json
import re
import struct
from pathlib import Path
from urllib.parse import unquote

import pytest
from doc_blocks import ROOT, anchors, blocks, lines, links

README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "RESULTS.md"
PAGES = [README, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
JOURNEYS = (
    "Fine-tune an image model",
    "Steer an image model or a robot policy",
    "Train a robot policy by reinforcement learning",
)


def one_line(page: Path) -> str:
    return " ".join(page.read_text(encoding="utf-8").split())


def sections(page: Path) -> dict[str, str]:
    """Heading of the second level -> what stands under it, in order."""
    parts = re.split(r"^## (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# -- the front page -------------------------------------------------------------------------------


def test_the_front_page_is_short_and_in_order():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 220
    expected = ["Install", *JOURNEYS, "Use your own", "Results", "Where everything else is"]
    assert list(sections(README)) == expected
    for journey in JOURNEYS:
        assert len([line for line in sections(README)[journey].splitlines() if line]) <= 15
    head = README.read_text(encoding="utf-8").split("## Install")[0]
    first = head.split("\n\n")[1]
    assert first.count(".") == 1 and first.endswith(".")  # one sentence
    assert head.count("![") == 1 and "docs/results/front.png" in head
    install = sections(README)["Install"]
    assert "make demo" in install and "make test" in install


def test_the_picture_is_there_and_not_heavy():
    data = (ROOT / "docs/results/front.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[1:4] == b"PNG" and len(data) < 600_000 and width > 1.5 * height


def test_the_table_of_the_front_page_is_regenerated_and_has_losses():
    from scripts import front_table

    table = front_table.front()
    assert f"<!-- front -->\n\n{table}\n\n<!-- /front -->" in README.read_text(encoding="utf-8")
    rows = table.splitlines()[2:]
    assert 10 <= len(rows) <= 12
    assert all("](docs/RESULTS.md#" in row for row in rows)
    outcomes = [row.split(" | ")[3] for row in rows]
    assert "worse" in outcomes and "better in 2 of 15 pairs" in outcomes


def test_nothing_on_the_front_page_is_a_figure_of_results_but_in_the_table():
    """So that no sentence goes on stating what a new measurement has changed."""
    prose = re.sub(r"<!-- front -->.*<!-- /front -->", "", README.read_text("utf-8"), flags=re.S)
    for block in blocks(README):
        prose = prose.replace(block.text, "")
    assert re.findall(r"\d+(?:\.\d+)? ?(?:%|times|points|ms|seconds|minutes)", prose) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):  # elsewhere
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}, and there is no {path}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}: no such heading"


def test_links_are_found_where_they_are(tmp_path):
    """A test of the test above."""
    page = tmp_path / "page.md"
    page.write_text(
        "# The `head`, again\n[a](b.md#c) ![p](q.png)\n`[no](code)`\n"
        "```\n[no](block)\n```\n## A-b\n## A-b\n"
    )
    assert links(page) == ["b.md#c", "q.png"]
    assert anchors(page) == {"the-head-again", "a-b", "a-b-1"}


def test_every_page_of_the_docs_is_linked_from_the_front_page():
    linked = set(links(README))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


def test_what_is_installed_exists():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(project["optional-dependencies"])
    for page in (README, ROOT / "docs/ROBOTS.md"):
        for asked in re.findall(r"\.\[([\w,]+)\]", page.read_text(encoding="utf-8")):
            assert set(asked.split(",")) <= known
    shell = "\n".join(block.text for block in blocks(README, ""))
    for name in re.findall(r"-[cr] (\S+)", shell):
        assert (ROOT / name).is_file()
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in one_line(README)


def test_the_make_targets_exist():
    import subprocess

    shell = [line for block in blocks(README, "") for line in lines(block)]
    targets = [line.split()[1] for line in shell if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# -- the tables -----------------------------------------------------------------------------------


def in_results(marker: str, text: str) -> bool:
    return f"<!-- {marker} -->\n\n{text}\n\n<!-- /{marker} -->" in RESULTS.read_text("utf-8")


def test_the_results_of_images_are_those_of_the_committed_rows():
    from scripts import tiny_results

    block = tiny_results.block()
    assert in_results("results", block)
    assert "longer, 80 epochs" in block and "| 3.0 |" in block


def test_the_grid_of_images_shows_the_committed_samples():
    import numpy as np
    from PIL import Image

    from genpol.reports.grids import before_after
    from scripts import tiny_results

    prompts, before, after = tiny_results.samples_of_seed_0()
    assert len(prompts) == len(before) == len(after) == 16
    with Image.open(tiny_results.RESULTS / "tiny_before_after.png") as picture:
        shown = np.asarray(picture.convert("RGB"))
    title = f"before and after {tiny_results.LONG_EPOCHS} epochs of fine-tuning"
    drawn = before_after(before, after, prompts, title=f"Held-out prompts, the same noise {title}")
    assert shown.shape == np.asarray(drawn).shape
    # letters may differ by a version of the font library, images may not
    assert (shown != np.asarray(drawn)).any(-1).mean() < 0.05


def test_the_marks_of_the_samples_are_those_of_the_gold_checker():
    import numpy as np
    import torch

    from diffusion.world import gold
    from scripts import tiny_results

    prompts, *pictures = tiny_results.samples_of_seed_0()
    rows = tiny_results.read(tiny_results.RESULTS / "tiny_samples.csv")
    for when, images in zip(("before", "after"), pictures, strict=True):
        pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).movedim(-1, 1) / 255
        found = gold.score(pixels, prompts)["attributes"]
        assert [round(float(x), 4) for x in found] == [float(r[f"gold_{when}"]) for r in rows]


def test_the_steering_table_is_that_of_the_committed_rows():
    from scripts import steer_table

    block = steer_table.report(steer_table.Table(steer_table.RESULTS, steer_table.COLUMNS).rows())
    assert in_results("steering", block)
    assert "- Cal-QL, T .3: +" in block and "@random" in block


def test_the_learning_table_is_that_of_the_committed_rows():
    from scripts import expo_table

    rows = expo_table.Table(expo_table.RESULTS, expo_table.COLUMNS).rows()
    block = expo_table.report(rows)
    assert in_results("learning", block)
    assert "| pick-place-v3 | expo |" in block


def test_the_tables_of_world_models_are_those_of_the_committed_rows():
    from scripts import edge_of_reach, lipschitz_table, vagram_table

    for script, marker in ((vagram_table, "vagram"), (edge_of_reach, "edge-of-reach")):
        block = script.report(script.Table(script.RESULTS, script.COLUMNS).rows())
        assert in_results(marker, block)
        assert "| Hopper-v5 | 2x32 | 0 |" in block or "| two heads, LayerNorm |" in block
    page = (ROOT / "docs/WORLD_MODELS.md").read_text(encoding="utf-8")
    for name, what in (("lipschitz", "critic and models"), ("lipschitz_sweep", "setting")):
        path = lipschitz_table.FOLDER / f"{name}.csv"
        block = lipschitz_table.report(
            lipschitz_table.Table(path, lipschitz_table.COLUMNS).rows(), what
        )
        assert in_results(name, block) if name == "lipschitz" else block in page
        assert "| InvertedPendulum-v5 | single" in block
        if name == "lipschitz":  # which the page quotes
            quoted = {"ensemble of 7": "142", "single": "106"}
            for arm, mean in quoted.items():
                assert f"| InvertedPendulum-v5 | {arm} | {mean} (" in block
            assert "142 against 106" in " ".join(page.split())


def test_the_speeds_are_those_of_the_committed_benches():
    from scripts import front_table

    text = front_table.speed_page()
    assert in_results("speed", text)
    found = json.loads((ROOT / "docs/results/bench_world_model.json").read_text())
    assert found["bench/sac_updates"] == found["bench/peer_sac_updates"]
    assert "| published JAX code, two cores | 0.87 |" in text
    for preset in ("faithful", "fast"):
        found = json.loads((ROOT / f"docs/results/bench_expo_{preset}.json").read_text())
        assert found["bench/agreement_bf16"] > 0.997
        assert abs(found["bench/agreement_two_step"] - 0.83) < 0.01


def test_the_waits_of_robots_are_those_of_the_committed_rows():
    from scripts import record_latency, serve_turns

    page = serve_turns.PAGE.read_text("utf-8")
    assert f"<!-- turns -->\n\n{serve_turns.report()}\n\n<!-- /turns -->" in page
    report = record_latency.report()
    assert f"<!-- record latency -->\n\n{report}\n\n<!-- /record latency -->" in page


# -- figures in sentences -------------------------------------------------------------------------


def test_the_cost_of_a_decision_is_that_of_the_committed_measurement():
    with open(ROOT / "docs/results/steering_latency.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["candidates"] == "32"]
    ratios = {kind: [float(r["ratio_p50"]) for r in rows if (r["policy"] == "gaussian") == kind]
              for kind in (False, True)}  # fmt: skip
    more = [float(r["steered_p50_ms"]) - float(r["base_p50_ms"]) for r in rows]
    assert all(1.5 <= ratio <= 1.9 for ratio in ratios[False]) and max(more) < 1
    assert all(2.5 <= ratio <= 3 for ratio in ratios[True])
    page = one_line(ROOT / "docs/ROBOTS.md")
    assert "1.5 to 1.9 times as long" in page and "2.5 to 3 times as long" in page


def test_the_share_of_time_inside_the_model_is_that_of_the_committed_bench():
    bench = json.loads((ROOT / "docs/results/bench_finetune.json").read_text())
    page = one_line(ROOT / "docs/IMAGES.md")
    assert f"{100 * bench['bench/model_share']:.0f} % of the time is spent inside the UNet" in page
