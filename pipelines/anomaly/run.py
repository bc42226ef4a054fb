"""Comparison of scans with what the model expects of their mask and row."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from tqdm import tqdm

from data.checks import check_labels_known
from data.cohort import Case
from data.geometry import Volume, grids_match, resample
from data.text.prompts import cohort_prompts, load_template
from data.volume_dataset import VolumeSample
from data.volumes import SUFFIXES, load_volume, read_header, write_like
from models.inference import LoadedRun, load_run
from options.anomaly_options import AnomalyCommand
from options.parser import to_dict
from options.test_options import ModelOptions
from pipelines.anomaly.findings import FINDING_COLUMNS, finding_rows, label_regions, top_regions
from pipelines.anomaly.findings import finding_sentence as finding_sentence
from pipelines.anomaly.normal_model import (
    MIN_CALIBRATION_SCANS,
    Calibration,
    LazyScans,
    ScanComparison,
)
from pipelines.generation import run_samples
from pipelines.run_cohort import load_run_cohort
from util import cli
from util.cli import UserError, safe_name
from util.files import atomic_path, file_fingerprint, write_csv
from util.metrics.regions import regions
from util.records import open_record
from util.web.figures import Panel
from util.web.results_page import ResultsPage
from util.web.web_data import block_shape

log = logging.getLogger(__name__)

RECORD = "unusual.json"  # which runs and flags the folder belongs to

CAUTIONS = (
    "This page makes no diagnosis. A strong region is where a scan differs from what this model "
    "expects of such a mask and row: disease, but also a vessel, motion, another scanner, or the "
    "model's own weakness. That a place is not outlined proves nothing.",
    "Only lung voxels of the mask are judged. What the mask leaves out (a solid nodule that the "
    "segmentation took for chest wall) cannot be found.",
)


def open_runs(o: AnomalyCommand) -> list[LoadedRun]:
    """The runs, which must know the same labels, HU window and voxel size."""
    if not o.runs.name:
        raise UserError("--name is not given; it names the run that generates.")
    loaded = []
    for name in o.runs.name:
        options = ModelOptions(
            name=name,
            checkpoints_dir=o.runs.checkpoints_dir,
            which_epoch=o.runs.which_epoch,
            gpu_ids=o.runs.gpu_ids,
            tile=o.runs.tile,
            tile_batch=o.runs.tile_batch,
        )
        loaded.append(load_run(options))
    for run in loaded[1:]:
        for what, one, two in (
            ("mask labels", loaded[0].labels, run.labels),
            ("--hu_window", loaded[0].options.data.hu_window, run.options.data.hu_window),
            ("--spacing", loaded[0].options.data.spacing, run.options.data.spacing),
        ):
            if one != two:
                raise UserError(
                    f"--name: {loaded[0].folder.name} and {run.folder.name} differ in {what} "
                    f"({one} and {two}); only refits of one set-up can be put together."
                )
    return loaded


class ExpectationModel:
    """Compares the scans of a cohort with what the runs generate, and keeps the comparison on
    disk.
    """

    def __init__(
        self, o: AnomalyCommand, loaded: Sequence[LoadedRun], root: str, kept: Path
    ) -> None:
        self.o, self.loaded, self.kept = o, loaded, kept
        first = loaded[0]
        self.data = replace(first.options.data, dataroot=root)
        self.cohort = load_run_cohort(
            first.folder, first.options.data, root, first.options.run.seed, need_images=True
        )
        self.prompts = []
        for run in loaded:
            data = run.options.data
            template = load_template(
                data.template, self.cohort.columns, data.key_column, data.patient_column
            )
            self.prompts.append(cohort_prompts(self.cohort, template))

    def check(self, cases: Sequence[Case]) -> None:
        """Finds bad masks, texts and marks before anything long starts."""
        check_labels_known(self.cohort.labels, self.loaded[0].labels, [case.mask for case in cases])
        for run, prompts in zip(self.loaded, self.prompts, strict=True):
            for case in cases:
                run.generator.encoder.validate([prompts[case.id].texts])
        for case in cases:
            if (mark := self.annotation_file(case)) and not _same_grid(mark, case.mask):
                raise UserError(
                    f"--annotations: {mark} lies on another grid than {case.mask}. Resample it onto the "
                    "scan's grid (nearest neighbour)."
                )

    def annotation_file(self, case: Case) -> Path | None:
        """The file of a case's known findings, where there is one."""
        paths = (Path(self.o.scans.annotations) / f"{case.id}{suffix}" for suffix in SUFFIXES)
        return next((p for p in paths if p.is_file()), None) if self.o.scans.annotations else None

    def sample(self, case: Case) -> VolumeSample:
        return run_samples(self.loaded[0], [case], self.data)[0]

    def __call__(self, case: Case) -> ScanComparison:
        """The case beside its generated mean and SD, from disk where it is there."""
        path, whole = self._path(case), self.sample(case)
        if whole.image is None:
            raise UserError(f"{case.id} has no scan to look at; add it to img/.")
        if not path.is_file():
            mean, sd = self._generate(whole)
            with atomic_path(path) as part:
                np.savez_compressed(part, mean=mean, sd=sd)
        with np.load(path, allow_pickle=False) as kept:
            mean, sd = kept["mean"], kept["sd"]
        lungs = np.isin(whole.labels, self.data.lung_labels)
        if not lungs.any():
            raise UserError(
                f"{case.mask} holds no lung (labels {self.data.lung_labels}), so nothing can be "
                "judged. Correct it, or train with --lung_labels."
            )
        x, y, z = (float(s) for s in voxel_sizes(whole.affine))
        real = whole.to_hu(whole.image[0])
        return ScanComparison(case.id, real, mean, sd, lungs, (x, y, z), self._marked(case, whole))

    def _path(self, case: Case) -> Path:
        """Where the comparison is kept; another mask or text makes it another file."""
        texts = [prompts[case.id].texts for prompts in self.prompts]
        digest = hashlib.sha256(repr((*file_fingerprint(case.mask), texts)).encode()).hexdigest()
        return self.kept / f"{safe_name(case.id)}_{digest[:12]}.npz"

    def _generate(self, whole: VolumeSample) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        made = []
        for run, prompts in zip(self.loaded, self.prompts, strict=True):
            texts = prompts[whole.case.id].texts
            for number in range(self.o.map.samples):
                sampler = replace(run.generator, seed=self.o.map.seed + number)
                volume = sampler(whole, texts)
                made.append(whole.to_hu(volume))
        return np.mean(made, 0), np.std(made, 0, ddof=1)

    def _marked(self, case: Case, whole: VolumeSample) -> NDArray[np.bool_] | None:
        path = self.annotation_file(case)
        if path is None:
            return None
        return (
            resample(load_volume(path), grid=(whole.labels.shape, whole.affine), order=0).array > 0
        )


def _same_grid(one: Path, two: Path) -> bool:
    first, second = read_header(one), read_header(two)
    return first.shape == second.shape and grids_match(first.shape, first.affine, second.affine)


def calibration_cases(o: AnomalyCommand, clean: ExpectationModel) -> tuple[list[Case], str]:
    """The scans that calibrate the map, and what they are, in words."""
    if o.scans.clean:
        return list(clean.cohort.cases), f"scans of the cohort {clean.cohort.root.name!r}"
    splits = clean.cohort.splits
    if len(splits["val"]) >= 2 and not set(splits["val"]) & set(splits["train"]):
        return list(clean.cohort.split("val")), "validation scans of the run"
    log.warning(
        "The run's validation split has no two cases of its own: the map is calibrated on training "
        "scans, which a model that learnt them by heart fits too well. Give scans without findings "
        "by --clean."
    )
    return list(clean.cohort.split("train")), "training scans of the run, which may fit too well"


def calibrate_map(
    o: AnomalyCommand, clean: ExpectationModel, cases: Sequence[Case], what: str
) -> tuple[Calibration, str]:
    """The calibration, and what it is worth, in a sentence."""
    for case in tqdm(cases, "calibration scans", unit="scan", disable=not cli.is_main_process()):
        clean(case)
    found = Calibration.from_scans(LazyScans(cases, clean), o.map.size_mm, o.map.false_alarms)
    text = (
        f"Calibrated on {len(cases)} {what}. Judged by fits to the others, {found.false_alarm_rate():.0%} of "
        f"them show a strong region (a peak above {found.threshold:.1f} usual spreads); asked for: "
        f"{o.map.false_alarms:.0%}."
    )
    if len(cases) < MIN_CALIBRATION_SCANS:
        text += f" {len(cases)} scans are too few to know this rate; {MIN_CALIBRATION_SCANS} are the least."
    if not o.scans.clean:
        text += " Whether they are free of findings was not checked."
    return found, text


def report_scan(
    o: AnomalyCommand,
    made: ExpectationModel,
    case: Case,
    calibration: Calibration,
    page: ResultsPage,
) -> list[dict[str, Any]]:
    """One scan: its map, regions, volumes and row of the page; returns its rows of findings.csv."""
    scan, whole = made(case), made.sample(case)
    found = calibration.map(scan)
    where = regions(whole.labels, scan.spacing, made.data.lung_labels, made.data.airway_label)
    findings = top_regions(found, where, calibration.threshold, o.map.regions)
    labels = label_regions(findings, found.shape)
    rows = finding_rows(case.id, findings, scan.real - scan.mean, whole.affine, scan.marked)
    folder, name = Path(o.scans.out), safe_name(case.id)
    header = read_header(case.mask)
    for kind, array, dtype in (
        ("unusual", found, np.float32),
        ("expected", scan.mean, np.int16),
        ("regions", labels, np.uint8),
    ):
        path, order = folder / "volumes" / f"{name}__{kind}.nii.gz", 0 if kind == "regions" else 1
        on_file = resample(
            Volume(array, whole.affine), grid=(header.shape, header.affine), order=order
        )
        write_like(path, on_file.array, case.mask, dtype)
    panels = _panels(scan, whole, found, labels, f"volumes/{name}")
    step = block_shape(found.shape, page.max_size)[2]
    notes = [
        f"{finding_sentence(r)} Axial slice {f.at[2] // step + 1}."
        for r, f in zip(rows, findings, strict=True)
    ]
    page.add_case(
        case.id,
        made.prompts[0][case.id].sentence,
        notes,
        panels,
        findings[0].at if findings else None,
    )
    return rows


def _panels(
    scan: ScanComparison, whole: VolumeSample, found: NDArray[Any], labels: NDArray[Any], file: str
) -> list[Panel]:
    space = scan.spacing
    panels = [
        Panel("mask", "mask", whole.labels, space),
        Panel("scan", "ct", scan.real, space, caption="strongest regions outlined", outline=labels),
        Panel(
            "expected",
            "ct",
            scan.mean,
            space,
            f"{file}__expected.nii.gz",
            "mean of the generated volumes",
        ),
        Panel(
            "scan minus expected",
            "difference",
            np.where(scan.where, scan.real - scan.mean, 0),
            space,
            caption="in the lungs",
        ),
        Panel(
            "how unusual",
            "score",
            found,
            space,
            f"{file}__unusual.nii.gz",
            "in usual spreads",
            outline=labels,
        ),
    ]
    if scan.marked is not None:
        panels.append(
            Panel(
                "known findings",
                "ct",
                scan.real,
                space,
                caption="as marked in --annotations",
                outline=scan.marked.astype(np.uint8),
            )
        )
    return panels


def find_anomalies(o: AnomalyCommand) -> Path:
    """Looks at every scan; returns the page."""
    if not o.scans.out:
        raise UserError("--out is not given; it is the folder for page, maps and tables.")
    if o.scans.annotations and not Path(o.scans.annotations).is_dir():
        raise UserError(f"--annotations {o.scans.annotations} does not exist or is no folder.")
    loaded, folder = open_runs(o), Path(o.scans.out)
    made = ExpectationModel(o, loaded, o.scans.dataroot, folder / "compared")
    clean = ExpectationModel(
        o, loaded, o.scans.clean or loaded[0].options.data.dataroot, folder / "compared"
    )
    cases = made.cohort.cases if o.scans.split == "all" else made.cohort.split(o.scans.split)
    cases = cases[: o.scans.how_many or len(cases)]
    calibrating, what = calibration_cases(o, clean)
    made.check(cases)
    clean.check(calibrating)
    open_record(folder, RECORD, _settings(o, loaded), o.scans.overwrite)
    calibration, words = calibrate_map(o, clean, calibrating, what)
    page = ResultsPage(
        folder,
        "What is unusual in these scans",
        loaded[0].options.data.hu_window,
        score_limit=float(np.ceil(1.5 * calibration.threshold)),
    )
    rows: list[dict[str, Any]] = []
    for case in tqdm(cases, "scans", unit="scan", disable=not cli.is_main_process()):
        rows += report_scan(o, made, case, calibration, page)
    write_csv(folder / "findings.csv", FINDING_COLUMNS, rows)
    write_csv(
        folder / "calibration.csv",
        ("case", "highest_spreads"),
        [{"case": k, "highest_spreads": round(v, 3)} for k, v in calibration.highest.items()],
    )
    shown = page.save(
        {"unusual.py": {k: v for g in to_dict(o).values() for k, v in g.items()}},
        cautions=(*CAUTIONS, words),
    )
    log.info("%s\nPage: %s", words, shown)
    return shown


def _settings(o: AnomalyCommand, loaded: Sequence[LoadedRun]) -> dict[str, Any]:
    """What the kept comparisons depend on."""
    return {
        "runs": [[run.folder.name, run.state["step"]] for run in loaded],
        "samples": o.map.samples,
        "seed": o.map.seed,
        "dataroot": str(Path(o.scans.dataroot).resolve()),
        "clean": o.scans.clean,
        "tile": o.runs.tile,
        "which_epoch": o.runs.which_epoch,
    }
