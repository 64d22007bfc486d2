"""Trains the checkpoints: `python train.py all`, or one of configs/. See docs/training.md."""

from __future__ import annotations

import argparse
import os
import sys
import time

from huggingface_hub import get_token

from mst.errors import InputError
from mst.training import processes
from mst.training.hub import check_repository, push
from mst.training.runs import TrainingError, load_config, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Trains a model. Started again, it goes on from the last checkpoint in runs/.",
    )
    parser.add_argument("config", help="a file of configs/, or 'all': cross-validate and train everything")
    parser.add_argument(
        "--data",
        action="append",
        help="a manifest (CSV) or the folder it lies in; may be given more than once; default: simulated cases alone",
    )
    parser.add_argument("--out", help="folder for the checkpoint; default: checkpoints/<name>")
    parser.add_argument("--runs", default="runs", help="folder for runs in progress (default: runs)")
    parser.add_argument(
        "--part",
        action="append",
        metavar="PART",
        help="train on all cases ('all') or leave a fold out ('fold-0', ...); may be given more than once",
    )
    parser.add_argument(
        "--push-to-hub", metavar="REPO", help="upload the checkpoint with its card to owner/name on the hub"
    )
    parser.add_argument(
        "--public", action="store_true", help="make a new repository public; it is private else"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as training.steps=100")
    options = parser.parse_intermixed_args(arguments)
    # The figures' command, without a folder of this machine.
    command = f"python train.py {options.config}" + " --data DATA" * len(options.data or ())
    command += "".join(f" {item}" for item in options.overrides)
    try:
        with processes.together():
            _train(options, command)
    except (InputError, OSError) as error:
        _tell(error)
        return 2
    return 0


def _train(options: argparse.Namespace, command: str) -> None:
    config = load_config(options.config, options.overrides)
    repository = options.push_to_hub
    if repository:
        check_repository(repository)
        if config["kind"] == "study":
            raise TrainingError("--push-to-hub takes one model: name its config instead of a whole study's.")
        if options.part and "all" not in options.part:
            raise TrainingError(
                "--push-to-hub needs the part 'all': the folds' models are not kept as checkpoints."
            )
        if not get_token():
            print(
                "No access token is at hand yet: log in with `hf auth login` before training ends.",
                flush=True,
            )
    folders = run(config, options.data, options.out, options.runs, options.part, command)
    if repository and processes.is_main():
        print(f"pushed to {push(folders[0], repository, private=not options.public)}", flush=True)


def _tell(error: Exception) -> None:
    """One line on standard error."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename:
        text = (
            f"{error.filename} could not be read or written ({error.strerror}). Make room, or check its permissions, "
            "and run the same command again."
        )
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        # What all processes run into, the main one tells; the launcher then ends the others before they are here.
        time.sleep(5)
        text = f"process {rank}: {text}"
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
