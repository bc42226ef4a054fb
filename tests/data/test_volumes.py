"""Volume files: the way in, and the way back onto the source grid, whatever its orientation."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from data.geometry import (
    Volume,
    corner_distance,
    crop,
    grid_with_spacing,
    grids_match,
    resample,
    shrink,
    to_ras,
)
from data.volumes import (
    check_labels,
    header_warnings,
    label_channels,
    load_volume,
    read_header,
    strip_suffix,
    to_hu,
    to_unit,
    write_like,
)
from util.cli import UserError
from util.volume_inputs import coordinate_grid, one_hot

SHAPE = (9, 11, 7)
REALCT = Path(__file__).resolve().parents[2] / ".." / "shared" / "realct"


def affines() -> dict[str, np.ndarray]:
    """Return one affine per orientation: axis-aligned, flipped, permuted, oblique, and all."""

    def affine(matrix: np.ndarray) -> np.ndarray:
        out = np.eye(4)
        out[:3, :3] = matrix @ np.diag([1.5, 0.8, 2.5])
        out[:3, 3] = -31.5, 20.25, -300
        return out

    turn = Rotation.from_euler("xyz", [9, -6, 14], degrees=True).as_matrix()
    flip = np.diag([-1.0, -1, 1])
    swap = np.eye(3)[:, [2, 0, 1]]
    return {
        "RAS": affine(np.eye(3)),
        "LPS": affine(flip),
        "permuted": affine(swap),
        "oblique": affine(turn),
        "all": affine(turn @ swap @ flip),
    }


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write a volume in the format of its suffix, MetaImage and NRRD by SimpleITK."""
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    image = sitk.GetImageFromArray(array.T)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def ramp(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return a volume whose voxels all differ."""
    return (np.arange(np.prod(shape)).reshape(shape) - 500).astype(np.int16)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("name", list(affines()))
def test_round_trip_on_the_source_grid(tmp_path: Path, name: str, suffix: str) -> None:
    source = write(tmp_path / f"case{suffix}", ramp(), affines()[name])
    volume = load_volume(source)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    out = tmp_path / "out" / "case.nii.gz"
    write_like(out, volume.array.astype(np.float32) + 0.4, source)

    written = nib.load(out)
    assert written.get_data_dtype() == np.int16
    # rounded, in the axis order of the source
    np.testing.assert_array_equal(np.asarray(written.dataobj), ramp())
    np.testing.assert_allclose(written.affine, affines()[name], atol=1e-4)
    assert written.header["qform_code"] > 0 or written.header["sform_code"] > 0
    first, second = sitk.ReadImage(str(source)), sitk.ReadImage(str(out))
    assert first.GetSize() == second.GetSize()
    for grid in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(first, grid)(), getattr(second, grid)(), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (1, 1), (0, 0), (2, 4)])
def test_header_codes_of_a_nifti_are_kept(tmp_path: Path, codes: tuple[int, int]) -> None:
    mask = tmp_path / "mask.nii.gz"
    out = tmp_path / "out.nii.gz"
    image = nib.Nifti1Image(ramp().astype(np.uint8), affines()["LPS"])
    image.set_qform(affines()["LPS"], code=codes[0])
    image.set_sform(affines()["LPS"], code=codes[1])
    nib.save(image, mask)
    write_like(out, load_volume(mask).array, mask)
    first, second = nib.load(mask), nib.load(out)
    np.testing.assert_array_equal(first.affine, second.affine)
    assert (int(second.header["qform_code"]), int(second.header["sform_code"])) == codes
    one, two = sitk.ReadImage(str(mask)), sitk.ReadImage(str(out))
    assert one.GetOrigin() == two.GetOrigin() and one.GetDirection() == two.GetDirection()


def test_only_the_grid_of_a_header_is_copied(tmp_path: Path) -> None:
    """Names of patients stand in headers of masks; they must not reach synthetic volumes."""
    mask = tmp_path / "mask.nii.gz"
    image = nib.Nifti1Image(ramp().astype(np.uint8), affines()["oblique"])
    for field in ("db_name", "aux_file", "intent_name", "descrip"):
        image.header[field] = b"DOE^JANE"
    image.header["slice_end"] = 6
    image.header["toffset"] = 1950
    image.header.set_intent("z score", name="DOE^JANE")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    image.header.set_xyzt_units("mm")
    nib.save(image, mask)
    assert b"DOE^JANE" in gzip.decompress(mask.read_bytes())
    for dtype in (np.int16, np.float32):
        out = tmp_path / f"{np.dtype(dtype)}.nii.gz"
        write_like(out, load_volume(mask).array, mask, dtype)
        content = gzip.decompress(out.read_bytes())
        assert b"DOE" not in content and b"Mask2CT: synthetic" in content
        written = nib.load(out)
        np.testing.assert_array_equal(written.affine, nib.load(mask).affine)
        np.testing.assert_array_equal(written.get_fdata(), image.get_fdata())
        assert written.header.get_xyzt_units() == ("mm", "unknown")
        assert len(content) == 352 + written.get_fdata().size * np.dtype(dtype).itemsize
        for field in ("intent_code", "toffset", "slice_end"):
            assert written.header[field] == 0


def test_endianness_and_version_are_kept(tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti2Image(ramp(), affines()["LPS"]), mask)
    write_like(tmp_path / "two.nii.gz", load_volume(mask).array, mask)
    assert isinstance(nib.load(tmp_path / "two.nii.gz"), nib.Nifti2Image)
    big = nib.Nifti1Image(ramp(), affines()["LPS"], nib.Nifti1Header(endianness=">"))
    nib.save(big, mask)
    write_like(tmp_path / "big.nii.gz", load_volume(mask).array, mask)
    assert nib.load(tmp_path / "big.nii.gz").header.endianness == ">"
    np.testing.assert_array_equal(nib.load(tmp_path / "big.nii.gz").dataobj, ramp())


def write_forms(path: Path, sform: np.ndarray, qform: np.ndarray, unit: str = "mm") -> Path:
    """Write a NIfTI with another sform than qform."""
    image = nib.Nifti1Image(ramp(), sform)
    image.set_sform(sform, code=1)
    image.set_qform(qform, code=1)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    affine = affines()["oblique"]
    stretched = affine @ np.diag([1, 1, 1.1, 1])
    turned = affine.copy()
    turn = Rotation.from_euler("z", 3, degrees=True).as_matrix()
    turned[:3, :3] = turn @ affine[:3, :3]
    for other in (affine @ np.diag([-1.0, 1, 1, 1]), stretched, turned):
        path = write_forms(tmp_path / "a.nii.gz", affine, other)
        with pytest.raises(UserError, match=r"a\.nii\.gz contradicts itself.*sform.*qform"):
            read_header(path)
    assert header_warnings(write_forms(tmp_path / "a.nii.gz", affine, affine)) == []
    moved = affine.copy()
    moved[:3, 3] += 20
    warnings = header_warnings(write_forms(tmp_path / "a.nii.gz", affine, moved))
    assert "sform and qform put the volume at different places" in warnings[0]
    np.testing.assert_allclose(read_header(tmp_path / "a.nii.gz").source_affine, affine, atol=1e-4)


def test_a_header_without_orientation_is_warned_of(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), None)
    nib.save(image, tmp_path / "a.nii.gz")
    assert "neither sform nor qform" in header_warnings(tmp_path / "a.nii.gz")[0]


def test_lengths_are_in_mm(tmp_path: Path) -> None:
    affine = affines()["RAS"]
    for unit, name in (("meter", "metres"), ("micron", "micrometres")):
        path = write_forms(tmp_path / "a.nii.gz", affine, affine, unit)
        with pytest.raises(UserError, match=f"gives lengths in {name}, not in mm"):
            load_volume(path)
    for factor in (0.001, 1000.0):
        scaled = np.diag([factor] * 3 + [1.0]) @ affine
        for suffix in (".nii.gz", ".mha"):
            path = write(tmp_path / f"b{suffix}", ramp(), scaled)
            with pytest.raises(UserError, match=r"has voxels of .* mm.*between 0\.05 and 50 mm"):
                load_volume(path)


def test_places_agree_with_simpleitk(tmp_path: Path) -> None:
    """A voxel's place in mm is the same by our affine (RAS) and by SimpleITK (LPS)."""
    source = write(tmp_path / "a.nrrd", ramp(), affines()["all"])
    volume, image = load_volume(source), sitk.ReadImage(str(source))
    for index in ((0, 0, 0), (3, 5, 2), (8, 10, 6)):
        value = image.GetPixel(index)
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        ours = np.argwhere(volume.array == value)[0]
        np.testing.assert_allclose(volume.affine[:3] @ [*ours, 1], place, atol=1e-6)


def test_header_needs_no_voxels(tmp_path: Path) -> None:
    for suffix in (".nii.gz", ".mha"):
        path = write(tmp_path / f"a{suffix}", ramp(), affines()["all"])
        header, volume = read_header(path), load_volume(path)
        assert header.shape == volume.shape
        np.testing.assert_allclose(header.affine, volume.affine)
        np.testing.assert_allclose(header.source_affine, affines()["all"], atol=1e-5)


def test_types_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", ramp(), np.eye(4))
    like = write(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    assert load_volume(path).array.dtype == np.int16
    write_like(tmp_path / "f.nii.gz", load_volume(path).array * 0.25, like, np.float32)
    assert load_volume(tmp_path / "f.nii.gz").array.dtype == np.float32
    np.testing.assert_array_equal(load_volume(tmp_path / "f.nii.gz").array, ramp() * 0.25)
    write_like(tmp_path / "i.nii.gz", np.full(SHAPE, 1e6), like)
    assert load_volume(tmp_path / "i.nii.gz").array.max() == 32767


def test_scaled_nifti_gives_hu(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.eye(4))
    image.header.set_slope_inter(2, -1024)  # nibabel then stores the numbers as they are
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(
        load_volume(tmp_path / "a.nii.gz").array.ravel(), np.arange(27) * 2 - 1024
    )


def test_writing_is_deterministic_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = write(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    out = tmp_path / "out.nii.gz"
    write_like(out, ramp(), like)
    before = out.read_bytes()
    write_like(out, ramp(), like)
    assert out.read_bytes() == before

    def full(image: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(
        UserError, match=r"out\.nii\.gz cannot be written \(No space left on device\)"
    ):
        write_like(out, ramp() * 0, like)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.nii.gz", "out.nii.gz"]


def test_bad_arrays_are_not_written(tmp_path: Path) -> None:
    like = write(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    with pytest.raises(UserError, match="not finite"):
        write_like(tmp_path / "out.nii.gz", np.full(SHAPE, np.nan), like)
    with pytest.raises(ValueError, match="shape"):
        write_like(tmp_path / "out.nii.gz", np.zeros((3, 3, 3)), like)
    assert not (tmp_path / "out.nii.gz").exists()


def damaged(folder: Path) -> dict[str, Path]:
    """Write files that cannot be read as a volume, and return them by their fault."""
    files = {}
    for suffix in (".nii.gz", ".nii", ".mha", ".nrrd"):
        whole = write(
            folder / f"whole{suffix}",
            np.random.default_rng(0).integers(0, 99, SHAPE, np.int16),
            np.eye(4),
        )
        path = files[f"truncated{suffix}"] = folder / f"truncated{suffix}"
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
        path = files[f"empty{suffix}"] = folder / f"empty{suffix}"
        path.write_bytes(b"")
        path = files[f"text{suffix}"] = folder / f"text{suffix}"
        path.write_text("this is not a volume\n" * 50)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), folder / "four.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 0, 4), np.int16), np.eye(4)), folder / "nothing.nii")
    nib.save(
        nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), folder / "complex.nii.gz"
    )
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorInt16, 3), str(folder / "vector.mha"))
    sitk.WriteImage(sitk.Image([4, 4], sitk.sitkInt16), str(folder / "flat.nrrd"))
    for name in ("four.nii.gz", "nothing.nii", "complex.nii.gz", "vector.mha", "flat.nrrd"):
        files[name] = folder / name
    files["missing"] = folder / "missing.nii.gz"
    files["unknown"] = folder / "scan.png"
    return files


def test_every_damaged_file_is_named(tmp_path: Path) -> None:
    for fault, path in damaged(tmp_path).items():
        with pytest.raises(UserError) as caught:
            load_volume(path)
        assert str(path) in str(caught.value), fault
    with pytest.raises(UserError, match=r"four.nii.gz has 4 dimensions .*three"):
        read_header(tmp_path / "four.nii.gz")
    with pytest.raises(UserError, match=r"png is not a volume file.*\.nrrd"):
        read_header(tmp_path / "scan.png")


def test_suffixes() -> None:
    names = ["a.nii.gz", "a.b.nii", "P1.2", "x.MHA", "y.nrrd", "a.gz"]
    assert [strip_suffix(name) for name in names] == ["a", "a.b", "P1.2", "x", "y", "a.gz"]


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_window(kind: object) -> None:
    hu = kind(np.array([-2000, -1000, -300, 400, 3000], np.int16))  # type: ignore[operator]
    unit = to_unit(hu, (-1000.0, 400.0))
    assert type(unit) is type(hu) and str(unit.dtype).endswith("float32")
    np.testing.assert_allclose(np.asarray(unit), [-1, -1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(to_hu(unit, (-1000.0, 400.0))), [-1000, -1000, -300, 400, 400], atol=1e-3
    )


def test_whole_hu_survive_the_window() -> None:
    hu = np.arange(-1000, 401, dtype=np.int16)
    np.testing.assert_array_equal(np.rint(to_hu(to_unit(hu, (-1000, 400)), (-1000, 400))), hu)


def test_one_hot_knows_its_labels() -> None:
    mask = np.array([[[0, 3], [1, 2]]], np.uint8)
    channels = label_channels(mask * 2, (0, 2, 4, 6), "a.nii.gz")
    assert channels.dtype == torch.uint8
    np.testing.assert_array_equal(channels.numpy(), mask)
    hot = one_hot(channels[None], 4)
    assert hot.shape == (1, 4, 1, 2, 2) and hot.dtype == torch.float32
    np.testing.assert_array_equal(hot[0].argmax(0).numpy(), mask)
    with pytest.raises(UserError, match=r"label 7 in a\.nii\.gz; the run has only 0, 1, 2, 3"):
        label_channels(np.array([[[0, 7]]], np.uint8), (0, 1, 2, 3), "a.nii.gz")
    with pytest.raises(UserError, match=r"a\.nii is not a mask: it holds 3 .* from -1024 to 40"):
        check_labels([-1024, 0, 40], (0, 1, 2, 3), "a.nii")  # the scan in place of its mask


@pytest.mark.parametrize("name", list(affines()))
def test_resampling_and_back(name: str) -> None:
    """A smooth field resampled by place keeps its values; the box, its centre and its axes stay."""
    source = to_ras(np.zeros((20, 16, 14)), affines()[name])
    axes = np.meshgrid(*[np.arange(n) for n in source.shape], indexing="ij")
    x, y, z = (
        np.einsum("ij,jxyz->ixyz", source.affine[:3, :3], np.array(axes))
        + source.affine[:3, 3, None, None, None]
    )
    smooth = Volume((3 * x - 2 * y + z).astype(np.float32), source.affine)
    coarse = resample(smooth, spacing=(1.9, 1.7, 2.1))
    np.testing.assert_allclose(
        np.linalg.norm(coarse.affine[:3, :3], axis=0), (1.9, 1.7, 2.1), atol=1e-6
    )
    middle = [v.affine[:3] @ [*(np.array(v.shape) - 1) / 2, 1] for v in (smooth, coarse)]
    np.testing.assert_allclose(middle[0], middle[1], atol=1e-6)
    back = resample(coarse, grid=(smooth.shape, smooth.affine))
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(back.array[inner], smooth.array[inner], atol=0.05)


def test_masks_stay_labels() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[4:10, 5:15, 5:15] = 1
    mask[11:17, 5:15, 5:15] = 2
    fine = resample(Volume(mask, np.diag([2.0, 2, 2, 1])), spacing=(1, 1, 1), order=0)
    assert fine.shape == (40, 40, 40) and fine.array.dtype == np.uint8
    assert set(np.unique(fine.array)) == {0, 1, 2}
    back = resample(fine, grid=((20, 20, 20), np.diag([2.0, 2, 2, 1])), order=0)
    assert (back.array == mask).mean() > 0.97
    same = resample(fine, spacing=(1, 1, 1), order=0)
    assert same is fine


def test_same_place_has_a_tolerance() -> None:
    affine = np.diag([0.7, 0.7, 1.0, 1.0])
    moved = affine.copy()
    moved[0, 3] = 0.01
    assert grids_match((512, 512, 300), affine, moved)
    moved[0, 3] = 0.5
    assert not grids_match((512, 512, 300), affine, moved)
    assert corner_distance((512, 512, 300), affine, moved) == pytest.approx(0.5)
    assert grid_with_spacing((10, 10, 10), affine, (0.7, 0.7, 2.0))[0] == (10, 10, 5)


def test_coordinates_and_crops_reach_beyond() -> None:
    whole = coordinate_grid((8, 4, 2))
    assert whole.shape == (3, 8, 4, 2)
    assert whole[0, 0, 0, 0] == pytest.approx(-0.875) and whole[2, 0, 0, 1] == 0.5
    part = coordinate_grid((8, 4, 2), (2, 1, 0), (3, 2, 2))
    torch.testing.assert_close(part, whole[:, 2:5, 1:3])
    padded = coordinate_grid((8, 4, 2), (-2, 0, 0), (12, 4, 2))
    torch.testing.assert_close(padded[:, 2:10], whole)
    assert padded[0, 0, 0, 0] < -1
    array = np.arange(24).reshape(2, 3, 4)
    out = crop(array, (-1, 1, 2), (4, 2, 5), -9)
    np.testing.assert_array_equal(out[1:3, :, :2], array[:, 1:, 2:])
    assert (out == -9).sum() == out.size - 8
    assert (crop(array, (5, 0, 0), (2, 2, 2), -9) == -9).all()


@pytest.mark.skipif(not REALCT.is_dir(), reason="the real scans (../shared/realct) are not here")
def test_real_scans_come_back_as_they_were(tmp_path: Path) -> None:
    scan, mask = (REALCT / folder / "LIDC-IDRI-0001.nii.gz" for folder in ("img", "gtlung"))
    volume, labels = load_volume(scan), load_volume(mask).array
    left, right = np.argwhere(labels == 1).mean(0), np.argwhere(labels == 2).mean(0)
    assert left[0] < right[0]  # index 0 runs to the patient's right
    write_like(tmp_path / "out.nii.gz", volume.array, mask)
    first, second = nib.load(mask), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(first.affine, second.affine)
    one, two = sitk.ReadImage(str(scan)), sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    for grid in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(one, grid)() == getattr(two, grid)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(two))


def test_blocks_of_voxels_become_one() -> None:
    array = np.arange(5 * 4 * 2, dtype=float).reshape(5, 4, 2)
    mean = shrink(array, (2, 2, 1), average=True)
    assert mean.shape == (3, 2, 2)
    assert mean[0, 1, 1] == array[:2, 2:, 1].mean() and mean[2, 0, 0] == array[4, :2, 0].mean()
    middles = array[np.ix_([1, 3, 4], [1, 3], [0, 1])]
    assert np.array_equal(shrink(array, (2, 2, 1), average=False), middles)
