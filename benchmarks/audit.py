"""How often the audit is right: generators that are known to be what they are, on zoos of several kinds.

    python benchmarks/audit.py --seeds 10

Each zoo of each seed is a file in `--output_dir`, so that an interrupted run goes on. Prints the table of
`docs/audit.md`, and ends with how many verdicts were right, and how many sets were praised that are not real.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from planted import PRAISE, planted_generators
from planted_zoos import CASES
from tqdm.auto import tqdm

from pdiff_hf import Auditor
from pdiff_hf.folders import write_json


def audit_case(kind: str, seed: int) -> dict:
    """Audits all planted generators of one zoo; returns the verdict of each and what is right."""
    case = CASES[kind](seed)
    started = time.perf_counter()
    auditor = Auditor(case.zoo, seed=seed, **case.arguments())
    verdicts = {}
    for name, (samples, right) in tqdm(planted_generators(case, seed).items(), desc=f"{kind}, seed {seed}"):
        answer = auditor.audit(samples)
        verdicts[name] = {"word": answer.verdict, "reason": answer.reason, "right": sorted(right)}
    return {"seconds": time.perf_counter() - started, "verdicts": verdicts}


def table(results: dict[tuple[str, int], dict]) -> list[str]:
    """Returns the lines of the table: of each planted generator what is right, and the words in each kind of zoo."""
    kinds = [kind for kind in CASES if any(found == kind for found, _ in results)]
    words: dict[str, dict[str, Counter[str]]] = {}
    rights: dict[str, list[str]] = {}
    for (kind, _), result in results.items():
        for name, verdict in result["verdicts"].items():
            rights[name] = verdict["right"]
            words.setdefault(name, {}).setdefault(kind, Counter())[verdict["word"]] += 1
    lines = [f"| planted | right | {' | '.join(kinds)} |", "|---|---|" + "---|" * len(kinds)]
    for name, found in words.items():
        right = "any fault" if len(rights[name]) > 8 else ", ".join(rights[name])
        cells = [", ".join(f"{word} {count}" for word, count in found.get(k, Counter()).most_common()) for k in kinds]
        lines.append(f"| {name} | {right} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="Number of seeds; each makes a zoo of each kind.")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="Kinds of zoo.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/audit"), help="Folder of the results.")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    results = {}
    for seed in range(arguments.seeds):
        for kind in arguments.cases:
            path = arguments.output_dir / f"{kind.replace(' ', '_')}-{seed}.json"
            if not path.is_file():
                write_json(path, audit_case(kind, seed))
            results[kind, seed] = json.loads(path.read_text())
    print("\n".join(table(results)))
    verdicts = [(name, v) for result in results.values() for name, v in result["verdicts"].items()]
    hits = sum(v["word"] in v["right"] for _, v in verdicts)
    fooled = [name for name, v in verdicts if v["word"] in PRAISE and not PRAISE & set(v["right"])]
    print(f"\n{hits} of {len(verdicts)} right; sets praised that are not real networks: {len(fooled)} {fooled}")


if __name__ == "__main__":
    main()
