"""Search for anomalies: scans beside the volumes that the model expects of their mask and row."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.checks.masks import check_labels_known
from data.cohort import Case
from data.geometry import Volume, grids_match, resample
from data.regions import regions_of
from data.text.prompts import Prompt, cohort_prompts, load_template
from data.volume_dataset import VolumeSample
from data.volumes import SUFFIXES, load_volume, read_header, write_like
from models.inference import LoadedRun, load_run
from options.anomaly_options import AnomalyCommand
from options.checks import check_chest_ct
from options.parser import to_dict
from options.test_options import ModelOptions
from pipelines.anomaly.domain_shift import (
    MAX_REFERENCE_SCANS,
    MIN_REFERENCE_SCANS,
    DomainShift,
    scan_properties,
)
from pipelines.anomaly.findings import (
    FINDING_COLUMNS,
    finding_rows,
    finding_sentence,
    label_regions,
    strongest_row,
    strongest_sentence,
    top_regions,
)
from pipelines.anomaly.normal_model import (
    MIN_CALIBRATION_SCANS,
    Calibration,
    LazyScans,
    ScanComparison,
)
from pipelines.generation.plan import run_samples
from pipelines.run_cohort import load_run_cohort
from util.cli import UserError, counted, safe_name
from util.files import atomic_path, file_fingerprint, write_csv
from util.locks import locked_folder
from util.notices import Notice, collected_warnings, notice
from util.progress import progress_bar
from util.records import open_record
from util.web.figures import Panel
from util.web.results_page import ResultsPage, ResultsReport

log = logging.getLogger(__name__)

RECORD = "unusual.json"  # the runs and the flags that the folder belongs to
TITLE = "What is unusual in these scans"
SCORE_MARGIN = 1.5  # the colours of the map reach this multiple of the threshold
CAUTIONS = (
    "This page makes no diagnosis. A strong region is where a scan differs from the model's "
    "expectation of such a mask and row: disease, but also a vessel, motion, another scanner, or "
    "the model's own weakness. A place without an outline proves nothing.",
    "A usual spread is how far scans without findings differ from the model's expectation at such "
    "a voxel. Where nearly the whole lungs are coloured, scan and calibration do not fit each "
    "other, and the regions mean nothing.",
    "Only lung voxels of the mask are judged. Anything outside the mask (a solid nodule that the "
    "segmentation took for chest wall) cannot be detected.",
)


def open_runs(command: AnomalyCommand) -> list[LoadedRun]:
    """Load the runs.

    Raises:
        UserError: Runs of different labels, HU window or voxel size.
    """
    loaded = []
    for name in command.runs.name:
        options = ModelOptions(
            name=name,
            checkpoints_dir=command.runs.checkpoints_dir,
            which_epoch=command.runs.which_epoch,
            gpu_ids=command.runs.gpu_ids,
            tile=command.runs.tile,
            tile_batch=command.runs.tile_batch,
        )
        loaded.append(load_run(options))
    first = loaded[0]
    for run in loaded[1:]:
        for what, one, two in (
            ("mask labels", first.labels, run.labels),
            ("--hu_window", first.options.data.hu_window, run.options.data.hu_window),
            ("--spacing", first.options.data.spacing, run.options.data.spacing),
        ):
            if one != two:
                raise UserError(
                    f"--name: {first.folder.name} and {run.folder.name} differ in {what} ({one} "
                    f"and {two}); only refits of one set-up can be combined."
                )
    return loaded


class ExpectationModel:
    """Comparison of a cohort's scans with the volumes that the runs generate for them.

    Args:
        command: The command's options.
        root: Folder of the cohort.
        cache: Folder of the generated means and SDs.
    """

    def __init__(
        self, command: AnomalyCommand, loaded: Sequence[LoadedRun], root: str, cache: Path
    ) -> None:
        self.command = command
        self.loaded = loaded
        self.cache = cache
        first = loaded[0]
        self.data = replace(first.options.data, dataroot=root)
        self.cohort = load_run_cohort(
            first.folder, first.options.data, root, first.options.run.seed, need_images=True
        )
        self.prompts = [self._run_prompts(run) for run in loaded]

    def _run_prompts(self, run: LoadedRun) -> dict[str, Prompt]:
        data = run.options.data
        columns = self.cohort.columns
        template = load_template(data.template, columns, data.key_column, data.patient_column)
        return cohort_prompts(self.cohort, template)

    def check(self, cases: Sequence[Case]) -> None:
        """Raise `UserError` for bad masks, texts and annotations before anything long starts."""
        check_labels_known(self.cohort.labels, self.loaded[0].labels, [case.mask for case in cases])
        for run, prompts in zip(self.loaded, self.prompts, strict=True):
            run.generator.encoder.validate([prompts[case.id].texts for case in cases])
        for case in cases:
            annotations = self.annotation_file(case)
            if annotations is not None and not _same_grid(annotations, case.mask):
                raise UserError(
                    f"--annotations: {annotations} lies on another grid than {case.mask}. Resample "
                    "it onto the scan's grid (nearest neighbour)."
                )

    def annotation_file(self, case: Case) -> Path | None:
        """Return the file of a case's known findings, where there is one."""
        folder = self.command.scans.annotations
        if folder:
            for suffix in SUFFIXES:
                path = Path(folder) / f"{case.id}{suffix}"
                if path.is_file():
                    return path
        return None

    def sample(self, case: Case) -> VolumeSample:
        """Return a case as a padded volume."""
        return run_samples(self.loaded[0], [case], self.data)[0]

    def __call__(self, case: Case) -> ScanComparison:
        """Compare a case with its generated mean and SD, which come from the cache if possible."""
        path = self._cache_file(case)
        sample = self.sample(case)
        if sample.image is None:
            raise UserError(f"{case.id} has no scan to look at; add it to img/.")
        if not path.is_file():
            volumes = self._generate(sample)
            with atomic_path(path) as part:
                np.savez_compressed(part, mean=np.mean(volumes, 0), sd=np.std(volumes, 0, ddof=1))
        with np.load(path, allow_pickle=False) as cached:
            mean = cached["mean"]
            sd = cached["sd"]
        lungs = np.isin(sample.labels, self.data.whole_lung_labels)
        if not lungs.any():
            raise UserError(
                f"{case.mask} holds no lung (labels {self.data.lung_labels}), so nothing can be "
                "judged. Correct it, or train with --lung_labels."
            )
        x, y, z = sample.spacing
        real = sample.to_hu(sample.image[0])
        annotated = self._read_annotations(case, sample)
        return ScanComparison(case.id, real, mean, sd, lungs, (x, y, z), annotated)

    def _cache_file(self, case: Case) -> Path:
        """Return the file of mean and SD; its name depends on mask and text."""
        texts = [prompts[case.id].texts for prompts in self.prompts]
        digest = hashlib.sha256(repr((*file_fingerprint(case.mask), texts)).encode()).hexdigest()
        return self.cache / f"{safe_name(case.id)}_{digest[:12]}.npz"

    def _generate(self, sample: VolumeSample) -> list[NDArray[np.float32]]:
        volumes = []
        for run, prompts in zip(self.loaded, self.prompts, strict=True):
            texts = prompts[sample.case.id].texts
            for number in range(self.command.map.samples):
                generator = replace(run.generator, seed=self.command.map.seed + number)
                volumes.append(sample.to_hu(generator(sample, texts)))
        return volumes

    def _read_annotations(self, case: Case, sample: VolumeSample) -> NDArray[np.bool_] | None:
        path = self.annotation_file(case)
        if path is None:
            return None
        grid = (sample.labels.shape, sample.affine)
        return resample(load_volume(path), grid=grid, order=0).array > 0


def _same_grid(one: Path, two: Path) -> bool:
    first = read_header(one)
    second = read_header(two)
    return first.shape == second.shape and grids_match(first.shape, first.affine, second.affine)


@dataclass(frozen=True)
class CalibrationCases:
    """Scans that calibrate the map, and their origin in words."""

    cases: Sequence[Case]
    origin: str


def select_calibration_cases(command: AnomalyCommand, clean: ExpectationModel) -> CalibrationCases:
    """Return the scans of `--clean`, or of the run's validation or training split."""
    cohort = clean.cohort
    if command.scans.clean:
        return CalibrationCases(cohort.cases, f"scans of the cohort {cohort.root.name!r}")
    validation = cohort.splits["val"]
    if len(validation) >= 2 and not set(validation) & set(cohort.splits["train"]):
        return CalibrationCases(cohort.split("val"), "validation scans of the run")
    log.warning(
        "The run's validation split does not have two cases that are not in training: the map is "
        "calibrated on training scans, which an overfitted model reproduces too well. Give scans "
        "without findings by --clean."
    )
    origin = "training scans of the run, which may fit too well"
    return CalibrationCases(cohort.split("train"), origin)


def find_domain_shift(
    command: AnomalyCommand,
    expectation: ExpectationModel,
    cases: Sequence[Case],
    clean: ExpectationModel,
    calibration: CalibrationCases,
) -> DomainShift:
    """Compare the scans with the run's training scans, and warn of those that are unlike them.

    Where `--clean` calibrates and the run's own cohort is gone, the calibration scans stand in.
    """
    own, reference, name = clean, calibration.cases, "calibration scans"
    data = expectation.loaded[0].options.data
    if command.scans.clean and Path(data.dataroot).is_dir():
        own = ExpectationModel(command, expectation.loaded, data.dataroot, expectation.cache)
    if own is not clean or not command.scans.clean:
        reference, name = own.cohort.split("train"), "training scans of the run"
    step = max(1, -(-len(reference) // MAX_REFERENCE_SCANS))
    lungs = data.whole_lung_labels
    known = [scan_properties(own.sample(case), lungs) for case in reference[::step]]
    searched = {case.id: scan_properties(expectation.sample(case), lungs) for case in cases}
    shift = DomainShift.from_properties(searched, known, name)
    if not shift.limits:
        log.warning(
            "There are %s to compare with, fewer than %d: whether these scans are like those that "
            "the run was trained on is unknown.",
            counted(sum(map(bool, known)), "scan"),
            MIN_REFERENCE_SCANS,
        )
    if shift.cases:
        log.warning(
            "%s", shift.warning(), extra=notice("unlike the run's scans", cases=shift.cases)
        )
    return shift


def calibrate_map(
    command: AnomalyCommand, clean: ExpectationModel, scans: CalibrationCases
) -> Calibration:
    """Calibrate the map on scans without findings."""
    for case in progress_bar(scans.cases, "calibration scans", "scan"):
        clean(case)
    lazy_scans = LazyScans(scans.cases, clean)
    return Calibration.from_scans(lazy_scans, command.map.size_mm, command.map.false_alarms)


def calibration_sentence(
    command: AnomalyCommand, scans: CalibrationCases, calibration: Calibration
) -> str:
    """Return the origin and the reliability of a calibration in words."""
    count = len(scans.cases)
    text = (
        f"Calibrated on {count} {scans.origin}. Judged by fits to the others, "
        f"{calibration.false_alarm_rate():.0%} of them show a strong region (a peak above "
        f"{calibration.threshold:.1f} usual spreads); asked for: {command.map.false_alarms:.0%}."
    )
    if count < MIN_CALIBRATION_SCANS:
        text += (
            f" {counted(count, 'scan is', 'scans are')} too few to know this rate; "
            f"{MIN_CALIBRATION_SCANS} are the least."
        )
    if not command.scans.clean:
        text += " Whether they are free of findings was not checked."
    return text


def report_scan(
    command: AnomalyCommand,
    expectation: ExpectationModel,
    case: Case,
    calibration: Calibration,
    page: ResultsPage,
) -> list[dict[str, Any]]:
    """Write a scan's map and regions, and add it to the page; return its rows of findings.csv."""
    scan = expectation(case)
    sample = expectation.sample(case)
    data = expectation.data
    deviation = calibration.deviation_map(scan)
    masks = regions_of(sample.labels, scan.spacing, data)
    findings = top_regions(deviation, masks, calibration.threshold, command.map.regions)
    labels = label_regions(findings, deviation.shape)
    difference = scan.real - scan.mean
    rows = finding_rows(case.id, findings, difference, sample.affine, scan.annotated)
    volumes = f"volumes/{expectation.cohort.file_names[case.id]}"
    folder = Path(command.scans.out)
    _write_volume(folder / f"{volumes}__unusual.nii.gz", deviation, sample, np.float32)
    _write_volume(folder / f"{volumes}__expected.nii.gz", scan.mean, sample, np.int16)
    _write_volume(folder / f"{volumes}__regions.nii.gz", labels, sample, np.uint8, order=0)
    notes = []
    for row, finding in zip(rows, findings, strict=True):
        notes.append(f"{finding_sentence(row)} Axial slice {finding.at[2] + 1}.")
    page.add_case(
        case.id,
        expectation.prompts[0][case.id].sentence,
        notes,
        _panels(scan, sample.labels, deviation, labels, volumes),
        findings[0].at if findings else None,
    )
    return rows


def _write_volume(
    path: Path, array: NDArray[Any], sample: VolumeSample, dtype: Any, order: int = 1
) -> None:
    """Write an array of the model's grid on the grid of the mask's file."""
    header = read_header(sample.case.mask)
    grid = (header.shape, header.affine)
    on_file = resample(Volume(array, sample.affine), grid=grid, order=order)
    write_like(path, on_file.array, sample.case.mask, dtype)


def _panels(
    scan: ScanComparison,
    mask: NDArray[Any],
    deviation: NDArray[Any],
    labels: NDArray[Any],
    volumes: str,
) -> list[Panel]:
    """Return the panels of a scan; `volumes` begins the links to its files."""
    spacing = scan.spacing
    difference = np.where(scan.lungs, scan.real - scan.mean, 0)
    expected = f"{volumes}__expected.nii.gz"
    unusual = f"{volumes}__unusual.nii.gz"
    caption = "mean of the generated volumes"
    real = Panel("scan", "ct", scan.real, spacing, None, "strongest regions outlined", labels)
    panels = [
        real,
        Panel("expected", "ct", scan.mean, spacing, expected, caption),
        Panel(
            "scan minus expected",
            "difference",
            difference,
            spacing,
            caption="in the lungs",
            before=real,
        ),
        Panel(
            "how unusual", "score", deviation, spacing, unusual, "in usual spreads", labels, real
        ),
        Panel("mask", "mask", mask, spacing),
    ]
    if scan.annotated is not None:
        annotated = scan.annotated.astype(np.uint8)
        caption = "as marked in --annotations"
        panels.append(Panel("known findings", "ct", scan.real, spacing, None, caption, annotated))
    return panels


def find_anomalies(command: AnomalyCommand) -> Path:
    """Search every scan for anomalies; return the page.

    Raises:
        UserError: Something that the user gave does not fit.
    """
    scans = command.scans
    if scans.annotations and not Path(scans.annotations).is_dir():
        raise UserError(
            f"--annotations {scans.annotations} does not exist or is not a folder. Check the path."
        )
    with locked_folder(Path(scans.out), "--out"), collected_warnings() as notices:
        return _search_scans(command, notices)


def _search_scans(command: AnomalyCommand, notices: Sequence[Notice]) -> Path:
    """Search every scan, in a folder that no other process uses; the page shows `notices`."""
    scans = command.scans
    folder = Path(scans.out)
    cache = folder / "compared"
    loaded = open_runs(command)
    check_chest_ct(loaded[0].options.data, "the search for anomalies")
    training_root = loaded[0].options.data.dataroot
    expectation = ExpectationModel(command, loaded, scans.dataroot, cache)
    clean = ExpectationModel(command, loaded, scans.clean or training_root, cache)
    cohort = expectation.cohort
    cases = cohort.cases if scans.split == "all" else cohort.split(scans.split)
    cases = cases[: scans.how_many or len(cases)]
    calibration_cases = select_calibration_cases(command, clean)
    expectation.check(cases)
    clean.check(calibration_cases.cases)
    open_record(folder, RECORD, record_settings(command, loaded), scans.overwrite)
    shift = find_domain_shift(command, expectation, cases, clean, calibration_cases)
    calibration = calibrate_map(command, clean, calibration_cases)
    reliability = calibration_sentence(command, calibration_cases, calibration)
    score_limit = float(np.ceil(SCORE_MARGIN * calibration.threshold))
    data = loaded[0].options.data
    page = ResultsPage(
        folder,
        TITLE,
        data.hu_window,
        score_limit=score_limit,
        terms=data.terms,
    )
    rows: list[dict[str, Any]] = []
    for case in progress_bar(cases, "scans", "scan"):
        rows += report_scan(command, expectation, case, calibration, page)
    write_csv(folder / "findings.csv", FINDING_COLUMNS, rows)
    highest = [
        {"case": case, "highest_spreads": round(value, 3)}
        for case, value in calibration.highest.items()
    ]
    write_csv(folder / "calibration.csv", ("case", "highest_spreads"), highest)
    options: dict[str, Any] = {}
    for group in to_dict(command).values():
        options.update(group)
    report = ResultsReport(
        headline=". ".join(filter(None, (shift.sentence(), strongest_sentence(rows, len(cases))))),
        first_case=str(strongest_row(rows)["case"]) if rows else "",
        cautions=(reliability, *CAUTIONS),
        notices=notices,
        links={name: name for name in ("findings.csv", "calibration.csv")},
    )
    path = page.save({"find_anomalies.py": options}, report)
    log.info("%s\nPage: %s", reliability, path)
    return path


def record_settings(command: AnomalyCommand, loaded: Sequence[LoadedRun]) -> dict[str, Any]:
    """Return everything that decides the cached comparisons."""
    return {
        "runs": [[run.folder.name, run.state["step"], run.digest] for run in loaded],
        "samples": command.map.samples,
        "seed": command.map.seed,
        "dataroot": str(Path(command.scans.dataroot).resolve()),
        "clean": command.scans.clean,
        "tile": command.runs.tile,
        "which_epoch": command.runs.which_epoch,
    }
