"""Trains the checkpoints: `python train.py all`, or one of configs/. See docs/training.md."""

from __future__ import annotations

import argparse
import sys

from mst.data import ManifestError
from mst.training.runs import TrainingError, load_config, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Trains a model. Started again, it goes on from the last checkpoint in runs/.",
    )
    parser.add_argument("config", help="a file of configs/, or 'all': cross-validate and train everything")
    parser.add_argument("--data", help="a manifest (CSV) or the folder it lies in; default: the config's")
    parser.add_argument("--out", help="folder for the checkpoint; default: checkpoints/<name>")
    parser.add_argument("--runs", default="runs", help="folder for runs in progress (default: runs)")
    parser.add_argument(
        "--part",
        action="append",
        metavar="PART",
        help="train on all cases ('all') or leave a fold out ('fold-0', ...); may be given more than once",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as training.steps=100")
    options = parser.parse_intermixed_args(arguments)
    # The figures' command, without a folder of this machine.
    command = f"python train.py {options.config}" + "".join(f" {item}" for item in options.overrides)
    try:
        config = load_config(options.config, options.overrides)
        run(config, options.data, options.out, options.runs, options.part, command)
    except (ManifestError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
