"""What is installed: the wheel holds every sub-package with its data, under names that shadow nothing of diffusers."""

from __future__ import annotations

import os
import pkgutil
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import diffusers.pipelines

import pdiff_hf

ROOT = Path(__file__).parents[1]
SUB_PACKAGES = [module.name for module in pkgutil.iter_modules(pdiff_hf.__path__) if module.ispkg]

IMPORT = """
import importlib, pkgutil, sys
import pdiff_hf, pdiff_hf_cli
from pdiff_hf.folders import shipped_folder
for package in sys.argv[1:]:
    module = importlib.import_module(f"pdiff_hf.{package}")
    for inner in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"pdiff_hf.{package}.{inner.name}")
assert pdiff_hf.load_recipe("fast") and pdiff_hf.load_recipe("paper")
assert (shipped_folder("model_cards") / "pipeline.md").is_file()
print(pdiff_hf.__file__)
"""


def test_every_sub_package_can_be_imported_from_the_wheel(tmp_path: Path):
    source = tmp_path / "source"
    for name in ("pdiff_hf", "model_cards", "training"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pdiff_hf_cli.py", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")

    imported = subprocess.run(
        [sys.executable, "-c", IMPORT, *SUB_PACKAGES],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )

    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.strip() == str(tmp_path / "installed" / "pdiff_hf" / "__init__.py")


def test_no_sub_package_has_a_name_of_diffusers_pipelines():
    # diffusers reads a library of that name in model_index.json as one of its own pipeline modules.
    assert {name for name in SUB_PACKAGES if hasattr(diffusers.pipelines, name)} == set() != set(SUB_PACKAGES)
