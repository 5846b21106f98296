"""The image data sets of the field by a short name: where they are, and what their columns and splits are called."""

from __future__ import annotations

from dataclasses import dataclass

import datasets


@dataclass(frozen=True)
class NamedDataset:
    """One data set on the Hub; whole numbers from 0 label its images."""

    hub_id: str
    image_column: str = "image"
    label_column: str = "label"
    validation_split: str | None = None  # by default cut off from the train split
    test_split: str = "test"  # what is reported
    streaming: bool = False  # read only as many images as are asked for; it is too large to be downloaded

    def load(self) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
        """Returns the splits by the names `train`, `validation` (where there is one) and `test`."""
        splits = {"train": "train", "validation": self.validation_split, "test": self.test_split}
        return {
            name: datasets.load_dataset(self.hub_id, split=split, streaming=self.streaming)
            for name, split in splits.items()
            if split is not None
        }


DATASETS = {
    "mnist": NamedDataset("ylecun/mnist"),
    "cifar10": NamedDataset("uoft-cs/cifar10", image_column="img"),
    "cifar100": NamedDataset("uoft-cs/cifar100", image_column="img", label_column="fine_label"),
    "stl10": NamedDataset("tanganke/stl10"),
    "flowers102": NamedDataset("dpdl-benchmark/oxford_flowers102", validation_split="validation"),
    "pets": NamedDataset("timm/oxford-iiit-pet"),
    # Has no test split: what it calls validation is what the literature reports.
    "food101": NamedDataset("ethz/food101", test_split="validation"),
    # The labels of its test split are secret (-1): validation is reported.
    "imagenet-1k": NamedDataset("ILSVRC/imagenet-1k", test_split="validation", streaming=True),
}
