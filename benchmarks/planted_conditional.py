"""Conditional generators that are known to be what they are, planted on a zoo of subsets: the audit has to find out.

    python benchmarks/planted_conditional.py --seeds 10

Each seed is a file in `--output_dir`, so that an interrupted run goes on. Prints the table of `docs/conditional.md`,
and ends with how many words were right.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path

import torch
from tqdm.auto import tqdm

from pdiff_hf import Checkpoints, CheckpointSplit, ConditionalAuditor, ImageData, MultiRunSettings, collect_runs
from pdiff_hf.evaluation.baselines import retrieval
from pdiff_hf.evaluation.conditional_baselines import TaskNetworks
from pdiff_hf.folders import write_json
from pdiff_hf.zoo.settings import load_images_of, load_target
from pdiff_hf.zoo.tasks import make_tasks

RIGHT = {
    "networks trained on the held-out tasks": "controls",
    "networks of random training tasks": "ignores its condition",
    "networks of random held-out tasks": "ignores its condition",
    "networks of the nearest task": "retrieval",
    "networks of the nearest task, permuted": "retrieval",
    "networks of the nearest task with small noise": "retrieval",
    "unseen networks of the nearest task": "retrieval",
    "ridge": "regression",
    "hypernetwork with small noise": "regression",
    "conditional Gaussian": "inconclusive",
}
MANY = 20  # networks for a condition of those that ignore it
SMALL = 0.02  # noise, in standard deviations of each number over the zoo


def settings_of(seed: int, num_tasks: int = 64, num_test_tasks: int = 24, runs_per_task: int = 12) -> MultiRunSettings:
    """Returns how the zoo of a seed is collected."""
    return MultiRunSettings(
        image_size=8,
        model_type="pdiff_mlp",
        model_config='{"hidden_sizes": [16]}',
        subset=["full"],
        target_train_steps=300,
        target_learning_rate=0.01,
        adam_weight_decay=1.0,
        tasks="subsets",
        num_tasks=num_tasks,
        num_validation_tasks=8,
        num_test_tasks=num_test_tasks,
        runs_per_task=runs_per_task,
        seed=seed,
    )


def halved(rows: CheckpointSplit) -> tuple[CheckpointSplit, CheckpointSplit]:
    """Returns every other network of each condition of a split, and the rest, both sorted by condition."""
    condition = torch.tensor(rows.condition)
    groups = [(condition == one).all(1).nonzero()[:, 0] for one in condition.unique(dim=0)]
    first, second = (torch.cat([group[start::2] for group in groups]).tolist() for start in (0, 1))
    return rows.rows(first), rows.rows(second)


def planted_generators(
    auditor: ConditionalAuditor, unseen: CheckpointSplit, heldout: CheckpointSplit, seed: int
) -> dict[str, torch.Tensor]:
    """Returns the networks of each generator of `RIGHT`, `(m, n, D)`, of those that ignore conditions `(m, MANY, D)`.

    Args:
        auditor: Whose held-out conditions networks are asked for.
        unseen: Networks of the training tasks that are not in the zoo.
        heldout: Networks of the held-out tasks, n for each, sorted by condition, that the auditor does not know.
        seed: Random seed for the networks.
    """
    baselines, generator = auditor.baselines, torch.Generator().manual_seed(seed)
    real = heldout.parameters.view(len(auditor.conditions), -1, heldout.parameters.shape[1])
    (m, n, _), zoo = real.shape, baselines.zoo.parameters
    drawn = [baselines(condition, n, generator) for condition in auditor.conditions]
    others = TaskNetworks(unseen.parameters, torch.tensor(unseen.condition))
    nearest = torch.stack([one["nearest_relabeled"] for one in drawn])

    def noise() -> torch.Tensor:
        return SMALL * zoo.std(0) * torch.randn(real.shape, generator=generator)

    planted = [
        real,
        retrieval(zoo, m * MANY, generator).view(m, MANY, -1),
        retrieval(real.flatten(0, 1), m * MANY, generator).view(m, MANY, -1),
        nearest,
        torch.stack([auditor.reference.symmetries.transform(one, generator) for one in nearest]),
        nearest + noise(),
        torch.stack([retrieval(others.of_nearest(baselines.meaning, c), n, generator) for c in auditor.conditions]),
        torch.stack([one["ridge"].expand(n, -1) for one in drawn]),
        torch.stack([one["hypernetwork"].expand(n, -1) for one in drawn]) + noise(),
        torch.stack([one["conditional_gaussian"] for one in drawn]),
    ]
    return dict(zip(RIGHT, planted, strict=True))


def audit_planted(checkpoints: Checkpoints, images: ImageData, seed: int, steps: int = 1000) -> dict[str, dict]:
    """Returns the word and the reason for each generator, planted on a zoo of subsets."""
    tasks, splits = make_tasks("subsets", images.label_names), dict(checkpoints.splits)
    splits["train"], unseen = halved(splits["train"])
    splits["test"], heldout = halved(splits["test"])
    known = dataclasses.replace(checkpoints, splits=splits)
    auditor = ConditionalAuditor(known, images, tasks, seed=seed, hypernetwork_steps=steps)
    found = {}
    for name, samples in planted_generators(auditor, unseen, heldout, seed).items():
        answer = auditor.audit(samples)
        found[name] = {"word": answer.verdict, "reason": answer.reason}
    return found


def main() -> None:
    """Audits what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="Number of seeds; each collects a zoo.")
    parser.add_argument("--num_tasks", type=int, default=64, help="Training tasks of each zoo.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/planted_conditional"), help="Folder of results.")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    words: dict[str, Counter[str]] = {name: Counter() for name in RIGHT}
    for seed in tqdm(range(arguments.seeds), desc="seeds"):
        path = arguments.output_dir / f"{arguments.num_tasks}-{seed}.json"
        if not path.is_file():
            settings = settings_of(seed, arguments.num_tasks)
            images = load_images_of(settings)
            zoo = collect_runs(images, load_target(settings, images), settings)
            write_json(path, audit_planted(zoo, images, seed))
        for name, found in json.loads(path.read_text()).items():
            words[name][found["word"]] += 1
    print("| planted | right | words |\n|---|---|---|")
    for name, counts in words.items():
        print(f"| {name} | {RIGHT[name]} | {', '.join(f'{word} {count}' for word, count in counts.most_common())} |")
    right = sum(words[name][word] for name, word in RIGHT.items())
    print(f"\n{right} of {sum(counts.total() for counts in words.values())} right")


if __name__ == "__main__":
    main()
