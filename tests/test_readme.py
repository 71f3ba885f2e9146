"""README.md: short, its picture real, its recipes right, its numbers those of the benchmarks."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import recast
from conftest import Save
from support import environment, raw_bytes

# In one group: the picture is drawn once.
pytestmark = [pytest.mark.docs, pytest.mark.torch, pytest.mark.xdist_group("readme")]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURE = ROOT / "docs" / "pictures" / "terminal.svg"
FENCE = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]*)")?\n(?P<text>.*?)^```$', re.M | re.S
)
COMMANDS = [
    "$ recast convert model model-bf16 --to bf16",
    "$ recast verify model model-bf16 --full",
]
CONTESTANTS = {
    "recast, on the disk when it ends": "recast, 2 threads",
    "recast `--no-sync`": "recast, 2 threads, --no-sync",
    "`cp -r`": "cp -r (no sync)",
    "torch, shard by shard": "torch, shard by shard (no sync)",
    "transformers, load and save": "transformers, load and save (no sync)",
}
BARS = ROOT / "docs" / "bench.svg"
SVG_TEXT = "{http://www.w3.org/2000/svg}text"
# After the heading, a bar's label and its time.
LABELS = [element.text or "" for element in ElementTree.parse(BARS).iter(SVG_TEXT)][1:]
CHART = dict(zip(LABELS[::2], LABELS[1::2], strict=True))


def lines_of(picture: Path) -> list[str]:
    """The text of an SVG, as the lines of the terminal it shows."""
    rows: dict[float, list[tuple[float, str]]] = defaultdict(list)
    for element in ElementTree.parse(picture).iter(SVG_TEXT):
        if "textLength" in element.attrib:
            place = (float(element.attrib["x"]), (element.text or "").replace("\xa0", " "))
            rows[float(element.attrib["y"])].append(place)
    return ["".join(text for _, text in sorted(rows[y])).rstrip() for y in sorted(rows)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "terminal.svg"
    script = ROOT / "docs" / "pictures" / "render.py"
    subprocess.run(
        [sys.executable, script, path], env=environment(), capture_output=True, check=True
    )
    return path


@pytest.mark.slow
def test_the_picture_is_of_a_real_run(drawn: Path) -> None:
    lines = lines_of(drawn)
    assert [line for line in lines if line.startswith("$ ")] == COMMANDS
    assert any(line.startswith("passed: model -> model-bf16") for line in lines)
    assert any("57 cast" in line for line in lines)


@pytest.mark.slow
def test_the_picture_shown_is_the_one_the_script_draws(drawn: Path) -> None:
    assert f"]({PICTURE.relative_to(ROOT)})" in README
    # Times, seeds and what GPU there is differ.
    varying = re.compile(
        r"  (time|values|requested|allocated|reserved|as stored|fp\d\d|bf16) |GPU|passed"
    )
    shown, now = (
        [line for line in lines_of(path) if not varying.search(line)] for path in (PICTURE, drawn)
    )
    assert shown == now, "make picture"


def test_the_picture_asks_no_other_machine_for_anything() -> None:
    assert not re.search(r"url\(\s*['\"]?http|href=|<script", PICTURE.read_text(encoding="utf-8"))


def test_the_readme_is_read_in_three_minutes() -> None:
    prose = FENCE.sub("", README)
    assert len(re.findall(r"[\w'-]{2,}", prose)) < 3 * 250


def test_the_numbers_are_those_of_the_benchmarks() -> None:
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = README.split("## How it compares")[1].split("\n## ")[0]
    for here, there in CONTESTANTS.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| {here} |"))
        other = next(line for line in measured.splitlines() if line.startswith(f"| {there} |"))
        time, memory = (cell.strip() for cell in row.split("|")[2:4])
        cells = [cell.strip() for cell in other.split("|")]
        assert time == cells[2], here
        assert memory in cells[-3:], here
        assert CHART[there] == time, here


def test_the_first_page_of_the_site_shows_measured_figures() -> None:
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    figures = re.findall(r"[\d.,]+ (?:s|MiB|GB)\b", page.split("## What to expect")[1])
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert len(figures) >= 6
    assert all(figure in measured for figure in figures), figures


def test_the_chart_shows_those_of_the_table_and_a_floor() -> None:
    assert f"]({BARS.relative_to(ROOT)})" in README
    others = CHART.keys() - CONTESTANTS.values()
    assert all(label.startswith("floor: write the output, 2 threads") for label in others), others


@pytest.mark.slow  # tests/test_docs.py runs the recipes too, without a look at what they make.
def test_the_recipes_do_what_they_say(saved: Save, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(saved("llama", "fp32"))
    for component in ("unet", "vae"):
        (tmp_path / "sdxl" / component).mkdir(parents=True)
        shard = raw_bytes([("conv.weight", "F32", [4], bytes(16))])
        (tmp_path / "sdxl" / component / "model.safetensors").write_bytes(shard)
    recipes = README.split("## Everyday recipes")[1].split("\n## ")[0]
    env = environment(PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin", CUDA_VISIBLE_DEVICES="")
    for block in FENCE.finditer(recipes):
        start = {"bash": ["bash", "-euc"], "python": [sys.executable, "-c"]}[block["language"]]
        result = subprocess.run(
            [*start, block["text"]],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    dtypes = {path.name: set(recast.inspect(path).dtypes) for path in tmp_path.glob("*/")}
    assert dtypes["model-bf16"] == dtypes["checked"] == {"BF16"}
    assert dtypes["model-fp16"] == dtypes["model-clipped"] == {"F16"}
    assert dtypes["sdxl-fp16"] == {"F16", "F32"}
    assert dtypes["model-kept"] == {"BF16", "F32"}
    assert set(recast.inspect(tmp_path / "sdxl-fp16" / "vae").dtypes) == {"F32"}


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
