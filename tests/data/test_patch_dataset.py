"""Patches, whole volumes and the cache of prepared volumes."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data import cache as cache_module
from data.augment import random_affine
from data.cache import CachedCase, cache_cases
from data.cache_space import IN_USE
from data.cohort import Case
from data.fact_store import CHECKS_FILE
from data.patch_dataset import (
    PatchBatch,
    PatchDataset,
    PatchSettings,
    choose_workers,
    collate_patches,
    patch_loader,
)
from data.volume_dataset import VolumeDataset, padded_size
from data.volumes import load_volume, to_unit, write_like
from options.base_options import DataOptions, PatchOptions, TextOptions
from util.cli import UserError
from util.seeding import noise_box, noise_key, uniform_draws
from util.volume_inputs import coordinate_grid

SHAPE, LABELS, WINDOW = (24, 20, 16), (0, 1, 2, 3), (-1000.0, 400.0)
AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])  # LPS


def make_case(
    folder: Path, name: str, seed: int = 0, shape: tuple[int, int, int] = SHAPE, empty: bool = False
) -> Case:
    """Write a case of noise with two lungs and an airway, stored in LPS."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    if not empty:
        x, y, _ = shape
        mask[x // 8 : x // 3, y // 4 : -y // 4, 2:-2] = 2  # the patient's right: low indices in LPS
        mask[-x // 3 : -x // 8, y // 4 : -y // 4, 2:-2] = 1
        mask[x // 2, y // 2, -3:] = 3
    hu = np.where(mask > 0, -850, 40) + rng.integers(-60, 60, shape)
    for sub, array in (("img", hu.astype(np.int16)), ("gtlung", mask)):
        (folder / sub).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), folder / sub / f"{name}.nii.gz")
    return Case(name, folder / "img" / f"{name}.nii.gz", folder / "gtlung" / f"{name}.nii.gz")


@pytest.fixture()
def cases(tmp_path: Path) -> list[Case]:
    """Return five cases."""
    return [make_case(tmp_path / "cohort", f"c{k}", k) for k in range(5)]


PROMPTS = {f"c{k}": [f"age {k}", "sex F", f"smoker {k % 2}"] for k in range(5)}


def dataset(
    cases: list[Case],
    cache: Path,
    size: tuple[int, int, int] = (12, 10, 8),
    *,
    seed: int = 0,
    data: DataOptions | None = None,
    text: TextOptions | None = None,
    lung_patch_prob: float = 0.8,
    augment: float = 0,
) -> PatchDataset:
    """Return small patches of the cases, by default without dropout."""
    prompts = {case.id: PROMPTS.get(case.id, ["age"]) for case in cases}
    settings = PatchSettings(
        data or DataOptions(),
        PatchOptions(patch_size=size, lung_patch_prob=lung_patch_prob, augment=augment),
        text or TextOptions(attribute_dropout=0),
        seed,
        noise_channels=2,
    )
    return PatchDataset(cases, prompts, LABELS, settings, cache)


def inputs(patches: PatchDataset, k: int) -> dict[str, torch.Tensor]:
    """Return what networks take of one patch, without the batch."""
    batch = patches.inputs(collate_patches([patches[k]]))
    return {name: value[0] for name, value in batch.items() if isinstance(value, torch.Tensor)}


def test_a_patch_lies_where_its_coordinates_say(cases: list[Case], tmp_path: Path) -> None:
    patches = dataset(cases, tmp_path / "cache")
    volumes = {case.id: (load_volume(case.image or ""), load_volume(case.mask)) for case in cases}
    grid = coordinate_grid(SHAPE)
    for k in range(12):
        sample, case = inputs(patches, k), patches[k]["case"]
        assert sample["image"].shape == (1, 12, 10, 8) and sample["mask"].shape == (4, 12, 10, 8)
        assert sample["noise"].shape == (2, 12, 10, 8)
        assert {sample[key].dtype for key in ("image", "mask", "coords")} == {torch.float32}
        lowest = sample["coords"].flatten(1).min(1).values  # of voxel i of n: (2 i + 1) / n - 1
        start = [round(float((low + 1) * n - 1) / 2) for low, n in zip(lowest, SHAPE, strict=True)]
        box = tuple(slice(s, s + n) for s, n in zip(start, (12, 10, 8), strict=True))
        image, mask = volumes[case]
        np.testing.assert_allclose(
            sample["image"][0].numpy(), to_unit(image.array[box], WINDOW), atol=1e-6
        )
        np.testing.assert_array_equal(sample["mask"].argmax(0).numpy(), mask.array[box])
        torch.testing.assert_close(sample["coords"], grid[:, box[0], box[1], box[2]])


def test_sample_depends_on_seed_and_number_alone(cases: list[Case], tmp_path: Path) -> None:
    text = TextOptions(attribute_dropout=0.4, shuffle_phrases=True)
    one = dataset(cases, tmp_path / "cache", text=text, augment=0.5)
    two = dataset(cases, tmp_path / "cache", text=text, augment=0.5)
    for k in (17, 3, 4):
        for before in (9, 1):  # earlier samples do not matter
            two[before]
        first, second = one[k], two[k]
        for key, value in first.items():
            other = second[key]  # type: ignore[literal-required]
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other)
            else:
                assert value == other
    reseeded = dataset(cases, tmp_path / "cache", text=text, augment=0.5, seed=1)
    assert not all(torch.equal(one[k]["hu"], reseeded[k]["hu"]) for k in range(5))


def test_every_epoch_sees_every_case_in_another_order(cases: list[Case], tmp_path: Path) -> None:
    patches = dataset(cases, tmp_path / "cache")
    epochs = [[patches[5 * e + k]["case"] for k in range(5)] for e in range(6)]
    assert all(sorted(epoch) == [f"c{k}" for k in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 2


def test_lung_share(cases: list[Case], tmp_path: Path) -> None:
    """A patch is centred on a lung with `lung_patch_prob`; otherwise it lies anywhere."""

    def share(lung_patch_prob: float) -> float:
        patches = dataset(cases, tmp_path / "cache", (3, 3, 3), lung_patch_prob=lung_patch_prob)
        return float(np.mean([patches[k]["channels"][1, 1, 1] in (1, 2) for k in range(150)]))

    assert share(1.0) > 0.95  # but for the rim, where a patch is moved inside
    assert share(0.0) < 0.4


def test_an_empty_mask_ends(tmp_path: Path) -> None:
    case = make_case(tmp_path / "cohort", "e", empty=True)
    patches = dataset([case], tmp_path / "cache", lung_patch_prob=1)
    assert inputs(patches, 0)["mask"][0].all()
    assert len({float(inputs(patches, k)["coords"].sum()) for k in range(20)}) > 5
    no_lung = dataset(
        [make_case(tmp_path / "cohort", "n")],
        tmp_path / "c2",
        (1, 1, 1),
        lung_patch_prob=1,
        data=DataOptions(lung_labels=(8, 9)),
    )  # no such label: any structure will do
    assert all(no_lung[k]["channels"].any() for k in range(20))


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_small_volumes_are_padded(tmp_path: Path, augment: float) -> None:
    case = make_case(tmp_path / "cohort", "s", shape=(10, 12, 9))
    sample = inputs(dataset([case], tmp_path / "cache", (16, 8, 12), augment=augment), 0)
    assert sample["image"].shape == (1, 16, 8, 12)
    torch.testing.assert_close(sample["mask"].sum(0), torch.ones(16, 8, 12))
    outside = (sample["coords"].abs() > 1).any(0)
    assert outside.sum() == (16 * 12 - 10 * 9) * 8
    if not augment:
        assert (sample["image"][0][outside] == -1).all() and sample["mask"][0][outside].all()


def test_a_patch_larger_than_every_volume_is_warned_of(
    cases: list[Case],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset(cases, tmp_path / "cache")
    assert "larger than every volume" not in caplog.text
    dataset(cases, tmp_path / "cache", (32, 16, 16))
    assert (
        "--patch_size 32,16,16 is larger than every volume (at most 24,20,16 voxels)" in caplog.text
    )


def test_turning_moves_scan_and_mask_alike() -> None:
    """A ball stays where it is, in CT and mask, and a full-size patch keeps its sides."""
    x, y, z = np.meshgrid(*[np.arange(n) for n in (40, 36, 32)], indexing="ij")
    mask = ((x - 12) ** 2 + (y - 18) ** 2 + (z - 16) ** 2 < 64).astype(np.uint8)
    hu = np.where(mask, -800, 0).astype(np.int16)
    rng = np.random.default_rng(0)
    for _ in range(5):
        turned, labels = random_affine(hu, mask, (2, 2, 2), (36, 32, 28), -1000, rng)
        assert turned.shape == labels.shape == (36, 32, 28) and turned.dtype == np.float32
        assert ((turned < -400) == labels.astype(bool)).mean() > 0.99
        assert np.argwhere(labels).mean(0)[0] < 14 and 0.8 < labels.sum() / mask.sum() < 1.25
        assert turned.min() >= -1000 and turned.max() <= 0


def test_attribute_dropout_and_mismatched_prompts(cases: list[Case], tmp_path: Path) -> None:
    patches = dataset(cases, tmp_path / "cache", text=TextOptions(attribute_dropout=0.3))
    samples = [patches[k] for k in range(200)]
    assert 0.6 < np.mean([len(s["prompt"]) for s in samples]) / 3 < 0.8
    for sample in samples:
        factual = set(PROMPTS[sample["case"]])
        assert set(sample["prompt"]) <= factual
        assert not set(sample["mismatched_prompt"]) <= factual
    shuffled = dataset(
        cases, tmp_path / "cache", text=TextOptions(attribute_dropout=0, shuffle_phrases=True)
    )
    assert len({tuple(p.split()[0] for p in shuffled[k]["prompt"]) for k in range(40)}) == 6


def test_mismatched_prompt_is_empty_where_all_agree(tmp_path: Path) -> None:
    alike = [make_case(tmp_path / "cohort", name) for name in ("x", "y")]
    assert dataset(alike, tmp_path / "cache")[0]["mismatched_prompt"] == []


def test_unknown_label_is_named(cases: list[Case], tmp_path: Path) -> None:
    path = cases[2].mask
    labels = load_volume(path).array
    labels[0, 0, 0] = 7
    write_like(path, labels, path, np.uint8)
    message = r"label 7 in .*c2\.nii\.gz; the run has only 0, 1, 2, 3"
    with pytest.raises(UserError, match=message):
        dataset(cases, tmp_path / "cache")
    with pytest.raises(UserError, match=message):
        VolumeDataset(cases, LABELS, DataOptions())[2]
    write_like(path, labels * 0.5, path, np.float32)
    with pytest.raises(UserError, match=r"c2\.nii\.gz holds labels that are not integers"):
        VolumeDataset(cases, LABELS, DataOptions())[2]


def test_noise_and_draws_follow_from_seed_and_number(cases: list[Case], tmp_path: Path) -> None:
    patches = dataset(cases, tmp_path / "cache")
    sample = inputs(patches, 3)
    key = noise_key(patches.seed, "sample 3")[None]
    channels, *size = sample["noise"].shape
    assert torch.equal(sample["noise"], noise_box(key, channels, (0, 0, 0), size)[0])
    assert torch.equal(sample["draws"], uniform_draws(key, 4)[0])
    assert not torch.equal(sample["draws"], inputs(patches, 4)["draws"])


# --- loader ---------------------------------------------------------------------------------------


def test_processes_share_the_batches_of_one(cases: list[Case], tmp_path: Path) -> None:
    patches = dataset(cases, tmp_path / "cache")
    state = torch.get_rng_state()
    whole: list[PatchBatch] = list(patch_loader(patches, 8, 24, 4))
    assert torch.equal(state, torch.get_rng_state())
    parts = [list(patch_loader(patches, 8, 24, 2, rank=rank, world=2)) for rank in range(2)]
    assert len(whole) == len(parts[0]) == 4
    for batch, first, second in zip(whole, *parts, strict=True):
        for name in ("hu", "channels", "start", "shape", "key"):
            assert torch.equal(
                batch[name],  # type: ignore[literal-required]
                torch.cat([first[name], second[name]]),  # type: ignore[literal-required]
            )
        assert batch["cases"] == first["cases"] + second["cases"]
    assert torch.equal(whole[1]["channels"][2], patches[14]["channels"])
    with pytest.raises(ValueError, match="multiple"):
        patch_loader(patches, 0, 7, 4)


def test_workers_give_the_same_batches(cases: list[Case], tmp_path: Path) -> None:
    patches = dataset(cases, tmp_path / "cache", text=TextOptions(attribute_dropout=0.5))
    for one, two in zip(
        patch_loader(patches, 0, 8, 4), patch_loader(patches, 0, 8, 4, workers=1), strict=True
    ):
        assert torch.equal(one["hu"], two["hu"]) and one["prompts"] == two["prompts"]
    assert len(pickle.dumps(patches)) < 5000  # no volume travels to a worker


def test_a_patch_costs_a_slice(tmp_path: Path) -> None:
    """HU and labels leave a worker: 3 bytes a voxel, and nothing is computed per voxel."""
    cases = [make_case(tmp_path / "cohort", f"c{k}", shape=(96, 96, 64)) for k in range(2)]
    patches = dataset(cases, tmp_path / "cache", (64, 64, 48))
    patches[0]
    started = time.process_time()
    samples = [patches[k] for k in range(1, 9)]
    assert (time.process_time() - started) / 8 < 0.015  # measured: 0.001 s
    volumes = (samples[0]["hu"], samples[0]["channels"])
    assert sum(volume.nbytes for volume in volumes) == 3 * 64 * 64 * 48


def test_scans_of_integers_and_of_other_values_are_a_batch(
    cases: list[Case], tmp_path: Path
) -> None:
    sample = dataset(cases, tmp_path / "cache")[0]
    other = {**sample, "hu": sample["hu"].float() + 0.5}
    batch = collate_patches([sample, other])  # type: ignore[list-item]
    assert batch["hu"].dtype == torch.float32
    assert torch.equal(batch["hu"][1], batch["hu"][0] + 0.5)


def test_workers_follow_from_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert choose_workers(3, torch.device("cpu")) == 3
    assert choose_workers(None, torch.device("cpu")) == 0
    assert choose_workers(None, torch.device("cuda")) == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_workers(None, torch.device("cuda")) == 2


# --- cache ----------------------------------------------------------------------------------------


def test_cache_is_keyed_by_content_and_options(
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, options = tmp_path / "cache", DataOptions()
    first = cache_cases([cases[0]], options, cache)[0]
    assert first.image().dtype == np.int16 and isinstance(first.image(), np.memmap)
    np.testing.assert_array_equal(first.image(), load_volume(cases[0].image or "").array)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "load_volume", lambda path: pytest.fail("read again"))
        other_window = replace(options, hu_window=(-900.0, 100.0))
        assert cache_cases([cases[0]], other_window, cache) == [first]
    coarse = cache_cases([cases[0]], DataOptions(spacing=(3, 3, 4)), cache)[0]
    assert coarse != first and coarse.shape() == (12, 10, 8) == coarse.image().shape
    assert set(np.unique(coarse.mask())) <= set(LABELS)
    write_like(cases[0].mask, load_volume(cases[0].mask).array * 0, cases[0].mask, np.uint8)
    assert cache_cases([cases[0]], options, cache)[0].labels() == [0]
    assert not list(cache.glob(".*.tmp"))


@pytest.mark.parametrize("stored", [True, False], ids=["digests-stored", "first-start"])
def test_a_set_time_does_not_hide_a_changed_volume(
    stored: bool, cases: list[Case], tmp_path: Path
) -> None:
    cache, options = tmp_path / "cache", DataOptions()
    (first,) = cache_cases(cases[:1], options, cache)
    path = cases[0].mask
    before, content = path.stat(), path.read_bytes()
    changed = load_volume(path).array.copy()
    changed[0, 0, 0] = 1 - changed[0, 0, 0]
    write_like(path, changed, path, np.uint8)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if not stored:
        (cache / "checks.json").unlink()
    (second,) = cache_cases(cases[:1], options, cache)
    assert second != first and second.mask()[0, 0, 0] == changed[0, 0, 0]
    path.write_bytes(content)
    assert cache_cases(cases[:1], options, cache) == [first]


def test_fractional_hu_are_kept(tmp_path: Path) -> None:
    case = make_case(tmp_path / "cohort", "f")
    assert case.image
    write_like(case.image, load_volume(case.image).array + np.float32(0.25), case.image, np.float32)
    image = cache_cases([case], DataOptions(), tmp_path / "cache")[0].image()
    assert image.dtype == np.float32 and (image % 1 == 0.25).all()


def test_a_full_disk_leaves_nothing_half(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, array: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        UserError, match=r"cannot take prepared volumes \(No space left.*--cache_dir"
    ):
        cache_cases(cases[:1], DataOptions(), tmp_path / "cache")
    written = {path.name for path in (tmp_path / "cache").iterdir()}
    assert written == {CHECKS_FILE, IN_USE}


def test_two_processes_may_prepare_the_same_case(
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    cached = cache_cases([cases[0]], DataOptions(), cache)[0]
    monkeypatch.setattr(cache_module, "_key", lambda *_, **__: "late")
    shutil.copytree(cached.folder, tmp_path / "copy")

    def slow(case: Case, spacing: None) -> object:
        shutil.copytree(tmp_path / "copy", cache / "late")  # another process is faster
        return real(case, spacing)

    real = cache_module.load_case
    monkeypatch.setattr(cache_module, "load_case", slow)
    assert cache_cases([cases[0]], DataOptions(), cache)[0] == CachedCase(cache / "late")


# --- whole volumes --------------------------------------------------------------------------------


def test_whole_volumes_come_back(cases: list[Case], tmp_path: Path) -> None:
    dataset = VolumeDataset(cases, LABELS, DataOptions(), (32, 8, 8), multiple=(8, 8, 8))
    assert [sample.name for sample in dataset] == [case.id for case in cases]
    whole = dataset[0]
    assert whole.image is not None
    cpu = torch.device("cpu")
    mask, coords = (
        volume_input.box((0, 0, 0), volume_input.shape[2:])
        for volume_input in (whole.mask_input(cpu), whole.coords_input(cpu))
    )
    assert whole.image.shape == (1, 32, 24, 16) and mask.shape == (1, 4, 32, 24, 16)
    torch.testing.assert_close(mask.sum(1), torch.ones(1, 32, 24, 16))
    assert cases[0].image
    hu = load_volume(cases[0].image).array
    np.testing.assert_allclose(whole.to_hu(whole.image[0]), hu, atol=1e-3)
    np.testing.assert_array_equal(whole.to_source_grid(hu), hu)
    inside = (0, slice(None), *whole.inside)
    torch.testing.assert_close(coords[inside], coordinate_grid(SHAPE))
    np.testing.assert_array_equal(mask[inside].argmax(0).numpy(), whole.labels)
    write_like(tmp_path / "out.nii.gz", whole.to_source_grid(whole.labels), cases[0].mask)
    np.testing.assert_array_equal(
        nib.load(tmp_path / "out.nii.gz").dataobj, nib.load(cases[0].mask).dataobj
    )


def test_whole_volumes_of_masks_alone_at_another_spacing(cases: list[Case]) -> None:
    alone = replace(cases[0], image=None)
    whole = VolumeDataset([alone], LABELS, DataOptions(spacing=(3, 3, 4)), (16, 16, 16))[0]
    assert (
        whole.image is None
        and whole.labels.shape == (12, 10, 8)
        and whole.channels.shape == (16, 16, 16)
    )
    back = whole.to_source_grid(np.isin(whole.channels.numpy(), (1, 2))[whole.inside])
    lungs = np.isin(load_volume(alone.mask).array, (1, 2))
    assert back.shape == SHAPE and ((back > 0.5) == lungs).mean() > 0.85
    assert padded_size((5, 8, 9), (6, 4, 4), (4, 8, 2)) == (8, 8, 10)
