"""The command `pdiff-hf`: a thin layer on the package's public functions.

It stands beside the package and imports it inside the commands, because torch and diffusers take seconds to import
and a help text should take none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence

EPILOG = """examples:
  pdiff-hf info org/pdiff-resnet18-cifar10
  pdiff-hf sample org/pdiff-resnet18-cifar10 --num_models 10 --output_dir drawn
  pdiff-hf audit runs/mine/pipeline --checkpoints runs/mine/checkpoints --output_dir runs/mine/report
  pdiff-hf push runs/mine/pipeline org/my-generator --private
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, or 1 after an error that the message explains."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("pdiff-hf: interrupted; nothing is half-written.", file=sys.stderr)
        return 130
    # What the package raises for what a user can mend; anything else is a bug, and shows where it is.
    except (OSError, ValueError) as error:
        print(f"pdiff-hf: {error}", file=sys.stderr)
        return 1
    return 0


def info(arguments: argparse.Namespace) -> None:
    """Prints what a generator's repository or folder holds."""
    from pdiff_hf.pipelines.describing import describe_pipeline, description_table

    described = describe_pipeline(arguments.pipeline, arguments.revision, arguments.token)
    print(json.dumps(described, indent=2) if arguments.json else description_table(described))


def sample(arguments: argparse.Namespace) -> None:
    """Draws networks into a folder, a repository, or both."""
    from transformers.utils import logging

    from pdiff_hf import PDiffPipeline, share
    from pdiff_hf.hub.sharing import prepare_repository
    from pdiff_hf.pipelines.sampling import sample_to_folder

    if arguments.output_dir is None and arguments.push_to is None:
        raise ValueError("Say where the networks go: --output_dir, --push_to, or both.")
    logging.disable_progress_bar()
    private = True if arguments.private else None
    if arguments.push_to is not None:
        prepare_repository(arguments.push_to, "model", private, arguments.token)  # fails before the work is done
    pipe = PDiffPipeline.from_pretrained(arguments.pipeline, revision=arguments.revision, token=arguments.token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output_dir or os.path.join(temporary, "drawn")
        sample_to_folder(
            pipe, folder, arguments.num_models, arguments.seed, arguments.temperature, arguments.num_inference_steps
        )
        if arguments.output_dir is not None:
            print(f"Written: {folder}")
        if arguments.push_to is not None:
            print(f"Pushed: {share(folder, arguments.push_to, private=private, token=arguments.token)}")


def audit(arguments: argparse.Namespace) -> None:
    """Judges a generator beside its baselines."""
    from pdiff_hf.evaluation import metrics_table, summarize
    from pdiff_hf.evaluation.auditing import AuditSettings, audit_pipeline

    settings = AuditSettings(
        pipeline=arguments.pipeline,
        checkpoints=arguments.checkpoints,
        output_dir=arguments.output_dir,
        dataset_name=arguments.dataset_name,
        num_models=arguments.num_models,
        seed=arguments.seed,
        push_to_hub=arguments.push_to is not None,
        hub_model_id=arguments.push_to,
        hub_token=arguments.token,
        hub_private_repo=arguments.private,
    )
    metrics = audit_pipeline(settings)
    print(f"{metrics_table(metrics)}\n\n{summarize(metrics)}\n\nReport and pictures: {arguments.output_dir}")


def push(arguments: argparse.Namespace) -> None:
    """Pushes a pipeline, a checkpoints dataset or drawn networks."""
    from pdiff_hf import append_checkpoints, load_checkpoints, share
    from pdiff_hf.pipelines.remote_code import push_remote_code

    private = True if arguments.private else None
    if arguments.append:
        checkpoints = load_checkpoints(arguments.folder)
        address = append_checkpoints(checkpoints, arguments.repo_id, private=private, token=arguments.token)
    else:
        address = share(
            arguments.folder,
            arguments.repo_id,
            private=private,
            token=arguments.token,
            commit_message=arguments.message,
        )
    print(f"Pushed: {address}")
    if arguments.remote_code:
        commit = push_remote_code(arguments.repo_id, arguments.token)
        print(f"Pushed the code to the branch remote-code: {commit}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pdiff-hf",
        description="Networks drawn from noise: look at generators, draw from them, judge and share them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(function: object, name: str, help: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"example:\n  pdiff-hf {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=function)
        made.add_argument("--token", help="a Hub token; by default the stored one (hf auth login)")
        return made

    one = command(info, "info", "say what a generator holds; fetches no weights", "org/pdiff-resnet18-cifar10 --json")
    one.add_argument("pipeline", help="a folder, or an id on the Hub")
    one.add_argument("--revision", help="branch, tag or commit")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = command(
        sample,
        "sample",
        "draw networks that plain transformers loads",
        "org/generator --num_models 10 --output_dir drawn",
    )
    one.add_argument("pipeline", help="a folder, or an id on the Hub")
    one.add_argument("--revision", help="branch, tag or commit")
    one.add_argument("--num_models", type=int, default=1, metavar="N", help="how many networks (default: 1)")
    one.add_argument("--output_dir", metavar="FOLDER", help="write them to 00000/, 00001/, … of this folder")
    one.add_argument(
        "--seed",
        type=int,
        default=0,
        help="network i is drawn with seed + i, so that it can be drawn alone (default: 0)",
    )
    one.add_argument("--temperature", type=float, default=1.0, help="1 as trained, 0 the average (default: 1)")
    one.add_argument("--num_inference_steps", type=int, metavar="N", help="steps of the sampler")
    _add_push_to(one, "push them to this repository")

    one = command(
        audit,
        "audit",
        "judge a generator beside the baselines, and write it into its card",
        "runs/pipeline --checkpoints runs/checkpoints",
    )
    one.add_argument("pipeline", help="a folder, or an id on the Hub")
    one.add_argument(
        "--checkpoints", required=True, help="the checkpoints dataset it was fitted to: a folder or an id"
    )
    one.add_argument("--output_dir", metavar="FOLDER", default="report", help="the report goes here (default: report)")
    one.add_argument("--dataset_name", help="where the images are, if not where the checkpoints were collected")
    one.add_argument("--num_models", type=int, default=200, metavar="N", help="networks to draw (default: 200)")
    one.add_argument("--seed", type=int, default=0, help="decides every sample (default: 0)")
    _add_push_to(one, "push the pipeline with its new card to this repository")

    one = command(
        push,
        "push",
        "push a pipeline, a checkpoints dataset or drawn networks",
        "runs/pipeline org/generator --private",
    )
    one.add_argument("folder", help="what a script, save_pretrained or Checkpoints.save wrote")
    one.add_argument("repo_id", help="for example org/name; made if need be")
    one.add_argument("--private", action="store_true", help="make the repository private")
    one.add_argument("--message", help="title of the commit")
    one.add_argument(
        "--append", action="store_true", help="add the rows of a checkpoints dataset to those that are there"
    )
    one.add_argument(
        "--remote_code", action="store_true", help="also make the branch remote-code, which works without this package"
    )
    return parser


def _add_push_to(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--push_to", metavar="ORG/NAME", help=help)
    parser.add_argument("--private", action="store_true", help="make that repository private")


if __name__ == "__main__":
    sys.exit(main())
