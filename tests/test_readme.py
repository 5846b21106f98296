"""The Python snippets of the README run in order, and its links exist."""

import re
from pathlib import Path

from conftest import run_snippets

from pdiff_hf import MultiRunSettings, collect_runs, fit
from pdiff_hf.zoo.settings import load_images_of, load_target

README = Path(__file__).parents[1] / "README.md"


def test_python_snippets_of_the_readme_run_in_order(tmp_path, monkeypatch, tiny_recipe):
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 4
    # In place of `make demo` and `make demo-conditional`:
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
        pipe.save_pretrained(tmp_path / f"runs/{name}/pipeline")
    monkeypatch.chdir(tmp_path)

    namespace = run_snippets(README)

    assert namespace["out"].logits(namespace["pixel_values"]).shape == (10, 4, 2)
    assert len(namespace["out"].condition_distance) == 10
    assert sorted(path.name for path in Path("drawn").iterdir() if path.is_dir()) == [f"{i:05d}" for i in range(10)]
    assert Path("zoo/data").is_dir()
    assert Path("generator/model_index.json").is_file()


def test_files_the_readme_links_to_exist():
    prose = re.sub(r"```.*?```", "", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!http)([^)#]+)\)", prose)
    assert len(links) > 5
    assert [link for link in links if not (README.parent / link).exists()] == []
