"""Finds the packages. Templates and recipes, at the top level of the repository, are installed inside the package.

`pdiff_hf.folders.shipped_folder` finds them in both places.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pdiff_hf", "pdiff_hf.*"]), "pdiff_hf.model_cards", "pdiff_hf.recipes"],
    package_dir={"pdiff_hf.model_cards": "model_cards", "pdiff_hf.recipes": "training/recipes"},
    package_data={"pdiff_hf": ["py.typed"], "pdiff_hf.model_cards": ["*.md"], "pdiff_hf.recipes": ["*.yaml"]},
)
