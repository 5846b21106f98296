"""The Python snippets of the README run alone and in order, those about drawn networks in order; their links exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_snippets, snippets
from scripts import environment

from pdiff_hf import MultiRunSettings, Recipe, collect_runs, fit
from pdiff_hf.zoo.settings import load_images_of, load_target

README = Path(__file__).parents[1] / "README.md"
DRAWN = README.parent / "docs" / "drawn_networks.md"


@pytest.fixture(scope="module")
def runs_of_demos(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe) -> Path:
    """A folder `runs`, with small pipelines where `make demo` and `make demo-conditional` write theirs."""
    folder = tmp_path_factory.mktemp("demos") / "runs"
    runs = {"num_runs": 20, "num_validation_runs": 0, "num_test_runs": 0}
    tasks = {"tasks": "subsets", "num_tasks": 20, "num_validation_tasks": 0, "num_test_tasks": 0, "runs_per_task": 1}
    for name, counts in {"demo": runs, "demo-conditional": tasks}.items():
        settings = MultiRunSettings(
            image_size=8,
            model_type="pdiff_mlp",
            model_config='{"hidden_sizes": [16]}',
            subset=["full"],
            target_train_steps=2,
            **counts,
        )
        images = load_images_of(settings)
        pipe = fit(collect_runs(images, load_target(settings, images), settings), tiny_recipe, images=images)
        pipe.save_pretrained(folder / name / "pipeline")
    return folder


@pytest.fixture
def demos(runs_of_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own to work in, after the demos."""
    shutil.copytree(runs_of_demos, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("demos")
@pytest.mark.parametrize("place", range(len(snippets(README))))
def test_each_python_snippet_of_the_readme_runs_alone_in_a_new_process(place: int):
    command = [sys.executable, "-c", snippets(README)[place]]

    process = subprocess.run(command, env=environment(), capture_output=True, text=True)

    assert process.returncode == 0, process.stderr


@pytest.mark.usefixtures("demos")
def test_python_snippets_of_the_readme_run_in_order():
    assert len(snippets(README)) == 4

    namespace = run_snippets(README)

    assert namespace["out"].logits(namespace["pixel_values"]).shape == (10, 4, 2)
    assert len(namespace["out"].condition_distance) == 10
    assert sorted(path.name for path in Path("drawn").iterdir() if path.is_dir()) == [f"{i:05d}" for i in range(10)]
    assert Path("zoo/data").is_dir()
    assert Path("generator/model_index.json").is_file()


@pytest.mark.usefixtures("demos")
def test_python_snippets_about_drawn_networks_run_in_order(capsys: pytest.CaptureFixture):
    namespace = run_snippets(DRAWN)

    shown = capsys.readouterr().out
    assert "10 drawn networks: MLPForImageClassification, parameters (10, 1210)\n" in shown
    assert "their ensemble" in shown
    assert namespace["predicted"].probabilities.shape == (797, 10)
    assert namespace["evaluation"].networks["accuracy"].shape == (10,)
    assert len(namespace["few"]) == len(namespace["best"]) == 3
    assert namespace["decoded"].parameters.shape == (10, 1210)
    assert len(namespace["between"].models) == 5
    assert Path("drawn/00009/model.safetensors").is_file()
    assert Path("best/model.safetensors").is_file()


@pytest.mark.parametrize(("page", "least"), [(README, 6), (DRAWN, 1)], ids=["README", "drawn_networks"])
def test_files_that_a_page_links_to_exist(page: Path, least: int):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!http)([^)#]+)\)", prose)
    assert len(links) >= least
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_api_page_has_every_public_name_once():
    exported = (README.parent / "pdiff_hf/__init__.py").read_text(encoding="utf-8")
    public = re.findall(r"^from \S+ import (\w+) as \1$", exported, re.MULTILINE)
    page = (README.parent / "docs/api.md").read_text(encoding="utf-8")

    assert sorted(re.findall(r"^::: pdiff_hf\.(\w+)$", page, re.MULTILINE)) == sorted(public)
