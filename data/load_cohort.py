"""Reading and checking of a cohort."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.body import BODY_FILE, BodyLabel, surrounding_label
from data.checks.cohort import check_volumes
from data.cohort import IMAGES, SPLITS_FILE, Case, Cohort, natural_key
from data.intensity import IntensityScale
from data.resampling import apply_resampling
from data.review import rejected_cases, rejection_sentence
from data.splits import Splits, draw_splits, read_splits
from data.table import ClinicalTable, find_table, match_table, read_table
from data.text.columns import review_table
from data.text.prompts import load_template
from data.text.values import named_patient
from data.volumes import SUFFIXES, has_suffix, load_volume, strip_suffix
from options.base_options import LUNG_LABELS, MAX_LABEL, DataOptions
from util.cli import UserError, counted, format_list, unknown_column

log = logging.getLogger(__name__)

MAX_EXAMPLES = 10  # masks that are read to find the label of the body

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
# What commands write before the table, by which an interrupted one is known.
UNFINISHED = {
    "expansion.json": "scripts/expand.py",
    ".prepared": "scripts/prepare_data.py",
}


def load_cohort(
    options: DataOptions,
    *,
    need_images: bool = True,
    seed: int = 0,
    cache: Path | None = None,
    check: bool = True,
    left_out: Sequence[str] | None = None,
    run_folder: Path | None = None,
) -> Cohort:
    """Find, pair and check everything in `options.dataroot`.

    Args:
        options: `--dataroot` and how it is read.
        need_images: Require a scan for every mask (training); else masks alone suffice.
        seed: Decides the splits where there is no `splits.json`.
        cache: Folder that stores the results of the checks.
        check: Read every volume (see `check_volumes`); without it `labels` is empty.
        left_out: Columns that a run left out of its text; None decides by the rows (see
            `data.text.columns`).
        run_folder: A run whose mean body completes masks that have neither a body nor a scan.

    Raises:
        UserError: A folder is missing or empty, scans and masks do not pair, an id occurs twice, no
            scan has a row, or the table, the splits, `review.csv` or a volume are malformed.
    """
    cohort = _find_cohort(options, need_images, seed)
    files = [(case.image, case.mask) for case in cohort.cases]
    cohort = _select_columns(cohort, options, left_out)
    cohort = apply_resampling(cohort, options, seed)
    if not check:
        return _with_body(cohort, options, options.body_number, run_folder)
    scale = IntensityScale.from_options(options)
    check_result = check_volumes(files, options.max_labels, cache, options.lung_labels, scale)
    warnings = (*cohort.warnings, *check_result.warnings)
    cohort = replace(cohort, labels=check_result.labels, warnings=warnings)
    _check_lesions(cohort, check_result.case_labels, options)
    number = options.body_number
    if options.body_label in ("auto", "masks"):
        number = choose_body_label(cohort, check_result.case_labels, options)
    if number is None:
        return cohort
    cohort = _with_body(cohort, options, number, run_folder)
    return report_bodies(cohort, check_result.case_labels, number)


def _find_cohort(options: DataOptions, need_images: bool, seed: int) -> Cohort:
    """Return the cases of a dataroot with their rows and splits, none of their volumes read."""
    root = check_root(options.dataroot, options.mask_folder)
    folder = root / options.mask_folder
    masks = files_by_case(folder)
    images = files_by_case(root / IMAGES) if (root / IMAGES).is_dir() else {}
    if need_images and not images:
        raise UserError(
            f"{root / IMAGES} does not exist; training needs the scan of every mask there."
        )
    rejected = rejected_cases(root, [*masks, *images])
    _check_pairs(
        root / IMAGES, folder, _without(images, rejected), _without(masks, rejected), need_images
    )
    table = _read_clinical_table(root, list(masks), options, rejected)
    empty_row = dict.fromkeys(table.columns, "")
    scale = IntensityScale.from_options(options)
    cases = []
    for case_id in sorted(masks, key=natural_key):
        row = {**empty_row, **table.rows.get(case_id, {})}
        cases.append(Case(case_id, images.get(case_id), masks[case_id], row, scale=scale))
    splits = _load_splits(root, cases, table.columns, options, seed, rejected)
    return Cohort(
        root,
        tuple(case for case in cases if case.id not in rejected),
        splits,
        (),
        table.columns,
        warnings=(rejection_sentence(rejected),) if rejected else (),
        rejected=tuple(rejected),
    )


def _check_lesions(
    cohort: Cohort, case_labels: Sequence[Sequence[int]], options: DataOptions
) -> None:
    """Raise `UserError` where the body would count as a lesion, and so as lung."""
    lesions = set(options.lesion_labels)
    for case, labels in zip(cohort.cases, case_labels, strict=True):
        if lesions & set(labels):
            around = surrounding_label(load_volume(case.mask).array, options.lung_labels)
            if around in lesions:
                raise UserError(
                    f"--lesion_labels holds {around}, which surrounds the lungs in {case.mask}: it "
                    "is the body, and would count as lung. Leave it out, and give lesions labels "
                    "of their own in the masks."
                )
            return


def choose_body_label(
    cohort: Cohort, case_labels: Sequence[Sequence[int]], options: DataOptions
) -> int | None:
    """Return the label of the body, for `--body_label auto` and `masks`; None where there is none.

    It is the label around the lungs of a mask that has labels beside lungs and airways; one mask of
    each set of labels is read, `MAX_EXAMPLES` in all. Where no mask has such labels, it is the next
    free label for `auto`.
    """
    chest = options.chest_labels
    others: dict[frozenset[int], Case] = {}
    for case, labels in zip(cohort.cases, case_labels, strict=True):
        if set(labels) - chest and len(others) < MAX_EXAMPLES:
            others.setdefault(frozenset(labels), case)
    for case in others.values():
        around = surrounding_label(load_volume(case.mask).array, options.lung_labels)
        if around is not None and around not in chest:
            return around
    if others:
        return None
    free = max(chest) + 1
    return free if options.body_label == "auto" and free <= MAX_LABEL else None


def _with_body(
    cohort: Cohort, options: DataOptions, number: int | None, run_folder: Path | None
) -> Cohort:
    """Return the cohort whose masks get the body on reading; without a number, as it is."""
    if number is None:
        return cohort
    shape_file = None if run_folder is None else run_folder / BODY_FILE
    body = BodyLabel(number, options.lung_labels, shape_file)
    cases = tuple(replace(case, body=body) for case in cohort.cases)
    labels = (*(label for label in cohort.labels if label != number), number)
    return replace(cohort, cases=cases, labels=labels if cohort.labels else (), body_label=number)


def report_bodies(cohort: Cohort, case_labels: Sequence[Sequence[int]], number: int) -> Cohort:
    """Log where the bodies come from; those that are drawn become warnings of the cohort.

    Args:
        case_labels: Labels of each case's mask.
        number: Label of the body.
    """
    lacking = [
        case
        for case, labels in zip(cohort.cases, case_labels, strict=True)
        if number not in labels and any(labels)
    ]
    drawn = [case for case in lacking if case.image is None]
    log.info(
        "Label %d is the body: labelled in %s, found in the scans of %d, drawn in %d.",
        number,
        counted(len(cohort.cases) - len(lacking), "mask"),
        len(lacking) - len(drawn),
        len(drawn),
    )
    if drawn:
        log.warning(
            "%s neither a body (label %d) nor a scan to find it in: the mean body of the training "
            "cases is drawn around the lungs: %s.",
            counted(len(drawn), "mask has", "masks have"),
            number,
            format_list([case.mask.name for case in drawn]),
        )
    notes = [
        f"{case.mask} has no body (label {number}) and no scan to find it in: the mean body of the "
        "training cases is drawn around its lungs. Its outline is not the patient's."
        for case in drawn
    ]
    return replace(cohort, warnings=(*cohort.warnings, *notes))


def check_lungs(cohort: Cohort, options: DataOptions) -> None:
    """Raise `UserError` where no mask of the cohort holds a label of the lungs.

    Where volumes are not of a chest, any label will do.
    """
    if cohort.labels and not options.terms.is_ct:
        _check_targets(cohort, options)
    elif cohort.labels and not set(options.lung_labels) & set(cohort.labels):
        raise UserError(
            f"--lung_labels is {','.join(map(str, options.lung_labels))}, but the masks in "
            f"{cohort.root} hold {format_list([str(v) for v in cohort.labels])} only; give the "
            "labels that are lungs."
        )


def _check_targets(cohort: Cohort, options: DataOptions) -> None:
    targets = set(target_labels(cohort.labels, options))
    if not targets & set(cohort.labels):
        raise UserError(
            f"The masks in {cohort.root / options.mask_folder} hold "
            f"{format_list([str(v) for v in cohort.labels])} only, and effects are to be measured "
            f"in {format_list([str(v) for v in sorted(targets)]) or 'labels above 0'}. Give "
            "--lung_labels that occur, or masks with labels."
        )


def target_labels(labels: Sequence[int], options: DataOptions) -> tuple[int, ...]:
    """Return the labels that effects are measured in: those of the lungs for chest CT.

    Args:
        labels: Labels of the cohort's masks.
        options: How the cohort is read; labels other than those of lungs were chosen by a user.
    """
    if options.terms.is_ct or options.lung_labels != LUNG_LABELS:
        return options.lung_labels
    return tuple(label for label in labels if label)


def check_root(dataroot: str, masks: str, flag: str = "--dataroot") -> Path:
    """Return the folder of a cohort.

    Args:
        dataroot: The folder.
        masks: Name of its folder of masks.
        flag: The flag that names it, for messages.

    Raises:
        UserError: There is no such folder, or it has no masks.
    """
    if not dataroot:
        raise UserError(f"{flag} is not given; it is the folder that holds {IMAGES}/ and {masks}/.")
    root = Path(dataroot)
    if not root.is_dir():
        raise UserError(f"{flag} {root} does not exist or is not a folder.")
    if not (root / masks).is_dir():
        inside = format_list(sorted(path.name for path in root.iterdir())) or "nothing"
        raise UserError(
            f"{flag} {root} has no folder {masks}/ with masks; it holds: {inside}. Where masks "
            "lie in another folder, name it by --mask_folder."
        )
    return root


def files_by_case(folder: Path) -> dict[str, Path]:
    """Return the volume files of a folder by case id."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not has_suffix(path.name):
            continue
        case_id = strip_suffix(path.name)
        if case_id in files:
            both = f"{files[case_id].name} and {path.name}"
            raise UserError(f"{folder} holds case {case_id!r} twice: {both}. Keep one of them.")
        files[case_id] = path
    if not files:
        _refuse_pictures(folder)
        raise UserError(f"{folder} is empty: it has no file that ends in {', '.join(SUFFIXES)}.")
    return files


def _refuse_pictures(folder: Path) -> None:
    """Raise `UserError` where a folder holds pictures in place of volumes."""
    pictures = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES]
    if pictures:
        raise UserError(
            f"{folder} holds 2D images ({format_list(pictures)}), and the networks take volumes: "
            "an X-ray or a single picture has neither slices nor voxel sizes. Give CT or MR "
            f"volumes ({', '.join(SUFFIXES)}); scripts/prepare_data.py prepares DICOM."
        )


def _without(files: Mapping[str, Path], rejected: Collection[str]) -> dict[str, Path]:
    return {case: path for case, path in files.items() if case not in rejected}


def _check_pairs(
    image_folder: Path,
    mask_folder: Path,
    images: dict[str, Path],
    masks: dict[str, Path],
    need_images: bool,
) -> None:
    no_mask = sorted(set(images) - set(masks), key=natural_key)
    no_image = sorted(set(masks) - set(images), key=natural_key)
    if no_mask:
        raise UserError(
            f"{image_folder} holds {counted(len(no_mask), 'scan')} without a mask of the same name "
            f"in {mask_folder}: {format_list(no_mask)}. Add the masks or remove the scans."
        )
    if no_image and need_images:
        raise UserError(
            f"{mask_folder} holds {counted(len(no_image), 'mask')} without a scan of the same name "
            f"in {image_folder}: {format_list(no_image)}. Add the scans or remove the masks."
        )
    if no_image and images:
        log.warning(
            "%s no scan: %s.",
            counted(len(no_image), "mask has", "masks have"),
            format_list(no_image),
        )


def _refuse_unfinished(root: Path) -> None:
    """Raise `UserError` where a command that writes its table last did not come to its end."""
    for mark, command in UNFINISHED.items():
        if (root / mark).exists():
            raise UserError(
                f"{root} has no clinical.csv, because {command}, which writes it last, was "
                "interrupted. Run that command again; it resumes."
            )


def _read_clinical_table(
    root: Path, cases: Sequence[str], options: DataOptions, rejected: Collection[str]
) -> ClinicalTable:
    path = find_table(root)
    if path is None:
        _refuse_unfinished(root)
        log.warning("%s has no clinical.csv or clinical.xlsx, so all prompts are empty.", root)
        return ClinicalTable((), {})
    table = match_table(read_table(path, options.key_column), cases, path, options.key_column)
    no_row = sorted(set(cases) - set(table.rows) - set(rejected), key=natural_key)
    no_scan = sorted(set(table.rows) - set(cases), key=natural_key)
    problems = []
    if no_row:
        scans = counted(len(set(cases) - set(rejected)), "scan")
        problems.append(f"{len(no_row)} of {scans} without a row: {format_list(no_row)}")
    if no_scan:
        rows = counted(len(table.rows), "row")
        problems.append(f"{len(no_scan)} of {rows} without a scan: {format_list(no_scan)}")
    if problems and options.strict:
        raise UserError(
            f"{path}: {'; '.join(problems)}. Complete the table, or leave out --strict."
        )
    for problem in problems:
        log.warning("%s: %s.", path, problem)
    return table


def _select_columns(cohort: Cohort, options: DataOptions, left_out: Sequence[str] | None) -> Cohort:
    """Return the cohort without columns that differ in nearly every row, and warn of odd values."""
    template = load_template(
        options.template, cohort.columns, options.key_column, options.patient_column
    )
    rows = [case.row for case in cohort.cases]
    review = review_table(rows, template, options.text_columns, left_out)
    columns = tuple(column for column in cohort.columns if column not in review.left_out)
    cases = []
    for case in cohort.cases:
        row = {column: case.row[column] for column in columns}
        cases.append(replace(case, row=row))
    return replace(
        cohort,
        cases=tuple(cases),
        columns=columns,
        left_out=review.left_out,
        warnings=(*cohort.warnings, *review.remarks),
    )


def _load_splits(
    root: Path,
    cases: Sequence[Case],
    columns: Sequence[str],
    options: DataOptions,
    seed: int,
    rejected: Collection[str],
) -> Splits:
    column = options.patient_column
    if column and column != options.key_column and column not in columns:
        fix = "Correct the name, or leave the flag out where the table does not name patients."
        raise UserError(unknown_column("--patient_column: the table", column, columns, fix))
    patients = {case.id: named_patient(case.row, column) for case in cases}
    ids = [case.id for case in cases]
    path = Path(options.splits) if options.splits else root / SPLITS_FILE
    if options.splits or path.is_file():
        splits = read_splits(path, ids, patients)
        return {
            name: tuple(case for case in members if case not in rejected)
            for name, members in splits.items()
        }
    ids = [case for case in ids if case not in rejected]
    return draw_splits(ids, seed, patients, images=any(case.image for case in cases))
