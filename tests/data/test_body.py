"""The body as a label: found in scans, drawn around lungs, chosen for a cohort, fixed in a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from data.body import (
    BODY_FILE,
    SHAPE_SIZE,
    BodyLabel,
    BodyShape,
    add_body,
    find_body,
    surrounding_label,
)
from data.cache import cache_cases, load_case
from data.cohort import IMAGES, MASKS, Case, Cohort
from data.geometry import Volume
from data.load_cohort import load_cohort
from data.volume_dataset import VolumeDataset
from options.base_options import DataOptions
from options.parser import from_dict
from options.train_options import TrainOptions, fixed_options
from util.cli import UserError

SPACING = (4.0, 4.0, 4.0)
AFFINE = np.diag([*SPACING, 1.0])
SHAPE = (80, 64, 40)
BODY = BodyLabel(4, (1, 2))


def ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.bool_]:
    """A cylinder along z, in voxels."""
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    disc = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
    return np.repeat(disc[..., None], SHAPE[2], 2)


def patient(scale: float = 1.0) -> tuple[Volume, Volume, NDArray[np.bool_]]:
    """Return scan, mask and true body: a trunk with two lungs on a thin table."""
    trunk = ellipse((40, 34), (32 * scale, 20 * scale))
    left = ellipse((40 - 15 * scale, 34), (11 * scale, 13 * scale))
    right = ellipse((40 + 15 * scale, 34), (11 * scale, 13 * scale))
    for lung in (left, right):
        lung[..., :8] = lung[..., 32:] = False
    hu = np.where(trunk, 30, -1000).astype(np.int16)
    hu[left | right] = -850
    hu[:, 12:14] = np.where(trunk[:, 12:14], hu[:, 12:14], 200)  # 8 mm, and touches the back
    mask = np.zeros(SHAPE, np.uint8)
    mask[left] = 1
    mask[right] = 2
    return Volume(hu, AFFINE), Volume(mask, AFFINE), trunk


def overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Dice coefficient."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def write_case(root: Path, case: str, scan: Volume | None, mask: Volume) -> None:
    for folder, volume in ((IMAGES, scan), (MASKS, mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        if volume is not None:
            image = nib.Nifti1Image(volume.array, volume.affine)
            nib.save(image, root / folder / f"{case}.nii.gz")


@pytest.fixture()
def lungs_only(tmp_path: Path) -> Path:
    """A cohort of three patients whose masks hold lungs alone."""
    for number, scale in enumerate((0.9, 0.95, 1.0)):
        scan, mask, _ = patient(scale)
        write_case(tmp_path / "lungs", f"c{number}", scan, mask)
    return tmp_path / "lungs"


def load(root: Path, **flags: object) -> Cohort:
    return load_cohort(replace(DataOptions(dataroot=str(root)), **flags), need_images=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [1, 2])
def test_the_body_is_found_without_the_table(factor: int) -> None:
    scan, mask, trunk = patient()
    for axis in range(3):
        scan, mask = (Volume(v.array.repeat(factor, axis), v.affine) for v in (scan, mask))
        trunk = trunk.repeat(factor, axis)
    spacing = [side / (2 * factor) for side in SPACING]  # 2 mm, and 1 mm that is averaged
    body = find_body(scan.array, mask.array > 0, spacing)
    assert overlap(body, trunk) > 0.99
    assert not body[:, : 14 * factor][~trunk[:, : 14 * factor]].any()
    assert not (body & (scan.array < -900)).any()


def test_a_thin_chest_wall_stays() -> None:
    scan, mask, _ = patient()
    hu = scan.array.copy()
    lungs = mask.array > 0
    wall = ellipse((55, 34), (12, 14)) & ~lungs
    hu[~wall & ~lungs & (np.arange(SHAPE[0]) >= 55)[:, None, None]] = -1000
    body = find_body(hu, lungs, SPACING)
    dense = wall & (hu > -500)
    assert (body & dense).sum() > 0.9 * dense.sum()


def test_enclosed_gas_belongs_to_the_body_and_a_gap_open_to_the_front_does_not() -> None:
    scan, mask, trunk = patient()
    gas = ellipse((40, 46), (3, 3))
    gas[..., :4] = gas[..., 36:] = False
    hu = scan.array.copy()
    hu[gas] = -1000
    body = find_body(hu, mask.array > 0, SPACING)
    assert body[gas].all() and overlap(body, trunk) > 0.98
    hu[39:42, 46:, 18:22] = -1000  # closed in all slices but these
    body = find_body(hu, mask.array > 0, SPACING)
    assert body[gas].mean() < 0.1 and overlap(body, trunk & ~gas) > 0.95


def test_labels_stay_and_the_body_is_the_rest() -> None:
    scan, mask, trunk = patient()
    labelled = add_body(mask, scan, BODY, "m").array
    assert labelled.dtype == np.uint8
    assert np.array_equal(labelled[mask.array > 0], mask.array[mask.array > 0])
    assert overlap(labelled == 4, trunk & (mask.array == 0)) > 0.99
    again = Volume(labelled, AFFINE)
    assert add_body(again, scan, BODY, "m") is again


def test_a_lesion_of_the_number_of_the_body_is_refused() -> None:
    scan, mask, _ = patient(1.0)
    labels = mask.array.copy()
    labels[tuple(np.argwhere(labels == 1)[0])] = BODY.label
    with pytest.raises(UserError, match="it has 1 voxel, hardly any beside the lungs"):
        add_body(Volume(labels, mask.affine), scan, BODY, "m")


def test_a_drawn_body_fits_the_lungs_at_hand(tmp_path: Path) -> None:
    masks = [add_body(m, s, BODY, "m") for s, m, _ in (patient(0.9), patient(1.0))]
    shape = BodyShape.from_masks(masks, (1, 2))
    assert shape is not None and shape.distance.shape == (SHAPE_SIZE,) * 3
    shape.save(tmp_path / BODY_FILE)
    _, smaller, trunk = patient(0.8)
    body = replace(BODY, shape_file=tmp_path / BODY_FILE)
    drawn = add_body(smaller, None, body, "m").array
    assert overlap(drawn > 0, trunk) > 0.95
    assert np.array_equal(drawn[smaller.array > 0], smaller.array[smaller.array > 0])
    fine = Volume(smaller.array.repeat(4, 0).repeat(4, 1).repeat(4, 2), np.diag([1.0, 1, 1, 1]))
    assert overlap(add_body(fine, None, body, "m").array[2::4, 2::4, 2::4] > 0, trunk) > 0.95


def test_lungs_of_a_drawn_body_never_lie_in_the_open() -> None:
    scan, mask, _ = patient()
    shape = BodyShape.from_masks([add_body(mask, scan, BODY, "m")], (1, 2))
    assert shape is not None
    lungs = mask.array > 0
    lungs[2:6, 30:36, 18:22] = True  # a spur out of the trunk
    drawn = shape.draw(lungs, SPACING)
    assert drawn[1:7, 29:37, 17:23].all()


def test_masks_without_lungs_have_no_shape_and_stay_as_they_are() -> None:
    empty = Volume(np.zeros(SHAPE, np.uint8), AFFINE)
    assert BodyShape.from_masks([empty], (1, 2)) is None
    assert add_body(empty, None, BODY, "m") is empty


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_a_shape_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / BODY_FILE
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"mask\.nii has no body \(label 4\) and no scan"):
        add_body(patient()[1], None, replace(BODY, shape_file=path), "mask.nii")


def test_the_label_around_the_lungs_is_the_body_and_an_organ_is_not() -> None:
    scan, mask, _ = patient()
    labels = add_body(mask, scan, replace(BODY, label=7), "m").array
    assert surrounding_label(labels, (1, 2)) == 7
    organ = mask.array.copy()
    organ[38:42, 28:40, 10:30] = 5
    assert surrounding_label(organ, (1, 2)) is None
    assert surrounding_label(np.zeros(SHAPE, np.uint8), (1, 2)) is None


def test_auto_adds_the_next_free_label(lungs_only: Path) -> None:
    cohort = load(lungs_only, body_label="auto")
    assert cohort.body_label == 4 and cohort.labels == (0, 1, 2, 4)
    _, mask = load_case(cohort.cases[0], None)
    assert 4 in mask.array
    assert load(lungs_only, body_label="auto", lung_labels=(2, 7), airway_label=1).body_label == 8


def test_none_leaves_masks_as_they_are(lungs_only: Path) -> None:
    cohort = load(lungs_only, body_label="none")
    assert cohort.body_label is None and cohort.labels == (0, 1, 2)
    assert set(np.unique(load_case(cohort.cases[0], None)[1].array)) == {0, 1, 2}


def test_auto_finds_a_body_that_is_labelled_and_completes_the_others(lungs_only: Path) -> None:
    scan, mask, _ = patient()
    labelled = add_body(mask, scan, replace(BODY, label=3), "m")
    write_case(lungs_only, "c1", scan, replace(labelled, array=labelled.array))
    labelled.array[40:44, 33:36, 18:22] = 9  # a node, the highest label
    write_case(lungs_only, "c2", scan, labelled)
    cohort = load(lungs_only, body_label="auto", airway_label=8)
    assert cohort.body_label == 3 and cohort.labels == (0, 1, 2, 9, 3)
    assert [3 in load_case(case, None)[1].array for case in cohort.cases] == [True] * 3


def test_auto_finds_a_body_behind_masks_with_an_organ_alone(lungs_only: Path) -> None:
    scan, mask, _ = patient()
    mask.array[38:42, 28:40, 10:30] = 4
    write_case(lungs_only, "c0", scan, mask)
    write_case(lungs_only, "c1", scan, add_body(mask, scan, replace(BODY, label=5), "m"))
    assert load(lungs_only, body_label="auto").body_label == 5


def test_auto_leaves_masks_with_organs_alone(lungs_only: Path) -> None:
    scan, mask, _ = patient()
    mask.array[38:42, 28:40, 10:30] = 4
    write_case(lungs_only, "c1", scan, mask)
    cohort = load(lungs_only, body_label="auto")
    assert cohort.body_label is None and cohort.labels == (0, 1, 2, 4)


@pytest.mark.parametrize("text", ["0", "1", "3", "256", "-4", "four", "", "²", "9999999999"])
def test_what_is_no_free_label_is_refused(lungs_only: Path, text: str) -> None:
    with pytest.raises(UserError, match="--body_label"):
        load(lungs_only, body_label=text)


def test_prepared_volumes_with_and_without_body_are_kept_apart(
    lungs_only: Path, tmp_path: Path
) -> None:
    options = DataOptions(dataroot=str(lungs_only), spacing=(8.0, 8.0, 8.0))
    labels = []
    for text in ("none", "auto", "5"):
        case = load(lungs_only, body_label=text).cases[0]
        labels.append(cache_cases([case], options, tmp_path / "cache")[0].labels())
    assert labels == [[0, 1, 2], [0, 1, 2, 4], [0, 1, 2, 5]]


def test_whole_volumes_hold_the_body_as_last_channel(lungs_only: Path) -> None:
    options = DataOptions(dataroot=str(lungs_only), body_label="4", spacing=(8.0, 8.0, 8.0))
    cohort = load_cohort(options)
    sample = VolumeDataset(cohort.cases, cohort.labels, options, multiple=(8, 8, 8))[0]
    channel = options.body_channel(len(cohort.labels))
    assert channel == 3 and sample.n_labels == 4
    assert (sample.channels == channel).sum() == (sample.labels == 4).sum() > 0


def test_a_mask_without_scan_is_drawn_and_said_so(lungs_only: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    masks = [load_case(case, None)[1] for case in load(lungs_only, body_label="4").cases]
    shape = BodyShape.from_masks(masks, (1, 2))
    assert shape is not None
    shape.save(run / BODY_FILE)
    (lungs_only / IMAGES / "c0.nii.gz").unlink()
    options = DataOptions(dataroot=str(lungs_only), body_label="4")
    cohort = load_cohort(options, need_images=False, run_folder=run)
    notes = [text for text in cohort.warnings if "mean body" in text]
    assert len(notes) == 1 and str(cohort.cases[0].mask) in notes[0]
    _, mask = load_case(cohort.cases[0], None)
    assert overlap(mask.array > 0, patient(0.9)[2]) > 0.95


def test_earlier_runs_had_no_body_and_a_run_keeps_its_own() -> None:
    before = from_dict(TrainOptions, {"data": {"dataroot": "x"}}, "options.json")
    assert before.data.body_label == "none"
    assert from_dict(TrainOptions, {}, "options.json").data.body_label == "none"
    stored = from_dict(TrainOptions, {"data": {"body_label": "4"}}, "options.json")
    assert fixed_options(stored)["body_label"] == "4" and stored.data.body_channel(5) == 4
    assert before.data.body_channel(5) is None


def test_a_case_has_no_body_by_itself() -> None:
    assert Case("a", None, Path("a")).body is None
    assert BodyLabel.from_options(DataOptions(body_label="none"), Path("run")) is None
    body = BodyLabel.from_options(DataOptions(body_label="6"), Path("run"))
    assert body == BodyLabel(6, (1, 2), Path("run") / BODY_FILE)
