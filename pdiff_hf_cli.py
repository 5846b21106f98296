"""The command `pdiff-hf`: a thin layer on the package's public functions.

It imports the package inside the commands, because torch and diffusers take seconds to import and a help text should
take none. Only `pdiff-hf audit --help` imports it: its flags are fields of `AuditSettings`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence

AUDIT = "evaluate a generator against strong simple baselines, and add the result to its card"
EPILOG = """examples:
  pdiff-hf info org/pdiff-resnet18-cifar10
  pdiff-hf sample org/pdiff-resnet18-cifar10 --num_models 10 --output_dir drawn
  pdiff-hf sample org/digit-subsets --condition 3 7 --num_models 10 --output_dir drawn
  pdiff-hf audit runs/mine/pipeline --checkpoints runs/mine/checkpoints --output_dir runs/mine/report
  pdiff-hf push runs/mine/pipeline org/my-generator --private
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, or 1 after an error that the message explains."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parsed = None if argv[:1] == ["audit"] else _parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        parsed.run(parsed) if parsed else audit(argv[1:])
    except KeyboardInterrupt:
        print("pdiff-hf: interrupted; nothing is half-written.", file=sys.stderr)
        return 130
    # What the package raises for what a user can fix; anything else is a bug, and its traceback is shown.
    except (OSError, ValueError) as error:
        message = "".join(character if character.isprintable() else " " for character in str(error))
        print(f"pdiff-hf: {message}", file=sys.stderr)
        return 1
    return 0


def info(arguments: argparse.Namespace) -> None:
    """Prints what a repository or folder of a generator, of checkpoints or of drawn networks holds."""
    from pdiff_hf.pipelines.describing import describe, description_table

    described = describe(arguments.pipeline, arguments.revision, arguments.token)
    print(json.dumps(described, indent=2) if arguments.json else description_table(described))


def sample(arguments: argparse.Namespace) -> None:
    """Draws networks into a folder, a repository, or both."""
    from transformers.utils import logging

    from pdiff_hf import PDiffPipeline, share
    from pdiff_hf.hub.sharing import prepare_repository
    from pdiff_hf.pipelines.sampling import parse_condition, sample_to_folder
    from pdiff_hf.settings import require_within

    if arguments.output_dir is None and arguments.push_to is None:
        raise ValueError("Name where the networks go: --output_dir, --push_to, or both.")
    require_within(arguments, 1, "num_models", "num_inference_steps")
    require_within(arguments, 0, "seed", "temperature")
    logging.disable_progress_bar()
    private = arguments.private or None
    if arguments.push_to is not None:
        prepare_repository(arguments.push_to, "model", private, arguments.token)  # fails before the work is done
    pipe = PDiffPipeline.from_pretrained(arguments.pipeline, revision=arguments.revision, token=arguments.token)
    copied = ("seed", "temperature", "num_inference_steps", "guidance_scale", "autoguidance_scale")
    settings = {name: getattr(arguments, name) for name in copied}
    settings["condition"] = parse_condition(pipe, arguments.condition)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output_dir or os.path.join(temporary, "drawn")
        sample_to_folder(pipe, folder, arguments.num_models, **settings)
        if arguments.output_dir is not None:
            print(f"Written: {folder}")
        if arguments.push_to is not None:
            print(f"Pushed: {share(folder, arguments.push_to, private=private, token=arguments.token)}")


def audit(flags: list[str]) -> None:
    """Evaluates a generator against baselines; takes the script's flags, and may name the pipeline first."""
    from pdiff_hf.evaluation import auditing

    if flags and not flags[0].startswith("-"):
        flags = ["--pipeline", *flags]
    auditing.main(flags, prog="pdiff-hf audit", description=AUDIT)


def push(arguments: argparse.Namespace) -> None:
    """Pushes a pipeline, a checkpoints dataset or drawn networks."""
    from pdiff_hf import append_checkpoints, load_checkpoints, share
    from pdiff_hf.pipelines.remote_code import push_remote_code

    folder, common = arguments.folder, {"private": arguments.private or None, "token": arguments.token}
    if arguments.append:
        address = append_checkpoints(load_checkpoints(folder), arguments.repo_id, **common)
    else:
        address = share(folder, arguments.repo_id, commit_message=arguments.message, **common)
    print(f"Pushed: {address}")
    if arguments.remote_code:
        commit = push_remote_code(arguments.repo_id, arguments.token)
        print(f"Pushed the code to the branch remote-code: {commit}")


class Version(argparse.Action):
    """Prints the version, which the package knows, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from pdiff_hf import __version__

        print(f"pdiff-hf {__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    description = "Networks drawn from noise: inspect generators, draw from them, audit and share them."
    parser = argparse.ArgumentParser("pdiff-hf", description=description, epilog=EPILOG, formatter_class=raw)
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(function: Callable, help: str, example: str) -> argparse.ArgumentParser:
        name = function.__name__
        epilog = f"example:\n  pdiff-hf {name} {example}"
        made = commands.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=raw)
        made.set_defaults(run=function)
        made.add_argument("--token", help="a Hub token; by default the stored one (hf auth login)")
        return made

    help = "show what a generator, a checkpoints dataset or drawn networks hold; fetches no weights"
    one = command(info, help, "org/pdiff-resnet18-cifar10 --json")
    one.add_argument("pipeline", metavar="name", help="a folder, or an id on the Hub")
    one.add_argument("--revision", help="branch, tag or commit")
    one.add_argument("--json", action="store_true", help="print JSON")

    example = "org/generator --num_models 10 --output_dir drawn"
    one = command(sample, "draw networks that plain transformers loads", example)
    one.add_argument("pipeline", help="a folder, or an id on the Hub")
    one.add_argument("--revision", help="branch, tag or commit")
    one.add_argument("--num_models", type=int, default=1, metavar="N", help="how many networks (default: 1)")
    one.add_argument("--output_dir", metavar="FOLDER", help="write them to 00000/, 00001/, … of this folder")
    one.add_argument("--seed", type=int, default=0, help="network i has seed + i and can be drawn alone (default: 0)")
    one.add_argument("--temperature", type=float, default=1.0, help="1 as trained, 0 the average (default: 1)")
    one.add_argument("--num_inference_steps", type=int, metavar="N", help="steps of the sampler")
    condition = "what they are for, if the generator has conditions: names such as 3 7, or numbers (see info)"
    one.add_argument("--condition", nargs="+", metavar="X", help=condition)
    scale = "1 is without (default: the generator's)"
    one.add_argument("--guidance_scale", type=float, metavar="G", help=f"guidance toward the condition; {scale}")
    one.add_argument("--autoguidance_scale", type=float, metavar="A", help="guidance away from the generator's guide")
    one.add_argument("--push_to", metavar="ORG/NAME", help="push them to this repository")
    one.add_argument("--private", action="store_true", help="make that repository private")

    commands.add_parser("audit", help=AUDIT)  # `main` hands its flags on before they are parsed here

    example = "runs/pipeline org/generator --private"
    one = command(push, "push a pipeline, a checkpoints dataset or drawn networks", example)
    one.add_argument("folder", help="what a script, save_pretrained or Checkpoints.save wrote")
    one.add_argument("repo_id", help="for example org/name; created if missing")
    one.add_argument("--private", action="store_true", help="make the repository private")
    one.add_argument("--message", help="title of the commit")
    one.add_argument("--append", action="store_true", help="add the rows of a checkpoints dataset to those there")
    remote_code = "also make the branch remote-code, which works without this package"
    one.add_argument("--remote_code", action="store_true", help=remote_code)
    return parser


if __name__ == "__main__":
    sys.exit(main())
