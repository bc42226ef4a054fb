"""Prepared volumes on disk, on the model's grid and memory-mapped, so that a patch is read fast."""

from __future__ import annotations

import functools
import math
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data import body
from data.cache_space import make_room, mark_in_use
from data.checks.masks import load_labels
from data.chunks import SUFFIX, open_chunks, save_chunks
from data.cohort import Case
from data.fact_store import CHECKS_FILE, FactStore
from data.fingerprints import file_digests
from data.geometry import Shape, Volume, as_shape, resample
from data.integrity import volume_fingerprint
from data.volumes import load_volume
from options.base_options import DataOptions
from util.cli import UserError
from util.files import json_digest
from util.parallel import map_processes, map_threads

VERSION = 3  # part of the keys: raise it when the stored arrays change
SHARED_CACHE = "volumes.cache"  # beside the runs
MAX_LUNG_POINTS = 20_000  # enough places to centre a patch on


@dataclass(frozen=True)
class CachedCase:
    """One case on the model's grid.

    Its arrays are memory-mapped, and opened once in each process.
    """

    folder: Path

    def image(self) -> np.ndarray:
        """CT in HU (X, Y, Z): int16 where all values are integers, else float32.

        Boxes of it can be taken; see `scan` for all of it.
        """
        return _open_volume(self.folder / "image.npy")

    def mask(self) -> np.ndarray:
        """Labels, uint8 (X, Y, Z), of which boxes can be taken; see `labelled` for all of it."""
        return _open_volume(self.folder / "mask.npy")

    def scan(self) -> Volume:
        """The whole CT with its affine."""
        return Volume(np.asanyarray(self.image()[:]), self.affine())

    def labelled(self) -> Volume:
        """The whole mask with its affine."""
        return Volume(np.asanyarray(self.mask()[:]), self.affine())

    def affine(self) -> np.ndarray:
        """Affine (4, 4) of the model's grid, voxel index to RAS mm."""
        return _open(self.folder / "affine.npy")

    def lung_points(self) -> np.ndarray:
        """Indices of lung voxels, see the function `lung_points`."""
        return _open(self.folder / "lung.npy")

    def labels(self) -> list[int]:
        """Labels that occur in the mask."""
        return [int(v) for v in np.load(self.folder / "labels.npy", allow_pickle=False)]

    def shape(self) -> Shape:
        """(X, Y, Z) of the case on the model's grid."""
        return as_shape(self.mask().shape)


@functools.lru_cache(maxsize=4096)
def _open_volume(path: Path) -> np.ndarray:
    """Open a volume, or its compressed chunks, which are read alike by boxes."""
    if path.is_file():
        return _open(path)
    chunks: np.ndarray = open_chunks(path.with_suffix(SUFFIX))
    return chunks


@functools.lru_cache(maxsize=4096)
def _open(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def load_case(case: Case, spacing: Sequence[float] | None) -> tuple[Volume | None, Volume]:
    """Return CT (linear) and mask (nearest, uint8) of a case on the model's grid.

    A mask without the body gets it here (see `data.body.add_body`), and a scan that is not in HU
    its scale (see `data.intensity`), and nowhere else.

    Args:
        spacing: Voxel size of the model's grid in mm; None for the grid of the files.

    Raises:
        UserError: A file cannot be read, a mask value is not an integer from 0 to 255, or the body
            cannot be added.
    """
    mask = load_labels(case.mask)
    image = load_scan(case)
    if spacing is not None:
        mask = resample(mask, spacing=spacing, order=0)
        if image is not None:
            image = resample(image, grid=(mask.shape, mask.affine), order=1)
    if case.body is not None:
        mask = body.add_body(mask, image, case.body, case.mask)
    return image, mask


def load_scan(case: Case) -> Volume | None:
    """Return the scan of a case on the grid of its file, in HU or on its scale; None without."""
    if case.image is None:
        return None
    scan = load_volume(case.image)
    return scan if case.scale is None else case.scale(scan)


def load_mask(case: Case) -> Volume:
    """Return the mask of a case on the grid of its file, as `load_case` does.

    The scan is read only where the mask may need a body.
    """
    return load_labels(case.mask) if case.body is None else load_case(case, None)[1]


def lung_points(mask: np.ndarray, lung_labels: Sequence[int]) -> np.ndarray:
    """Return the places that patches are centred on.

    They are voxels with a lung label, or with any label where none is a lung, at most
    `MAX_LUNG_POINTS` of them at random.

    Returns:
        Indices int32 (N, 3); N is 0 for an empty mask.
    """
    flat = np.flatnonzero(np.isin(mask, lung_labels))
    if not flat.size:
        flat = np.flatnonzero(mask)
    if flat.size > MAX_LUNG_POINTS:
        flat = np.random.default_rng(0).choice(flat, MAX_LUNG_POINTS, replace=False)
    return np.stack(np.unravel_index(flat, mask.shape), axis=1).astype(np.int32)


def _compact(hu: np.ndarray) -> np.ndarray:
    """Return HU as int16 where nothing is lost, else as float32."""
    rounded = hu if hu.dtype.kind in "iu" else np.rint(hu)
    limits = np.iinfo(np.int16)
    fits = limits.min <= rounded.min() and rounded.max() <= limits.max
    if fits and np.array_equal(rounded, hu):
        return rounded.astype(np.int16)
    return hu.astype(np.float32)


def _key(case: Case, options: DataOptions, store: FactStore) -> str:
    """Return the name of a case's folder, which follows from the content of scan and mask.

    The time of a change can be set, and a moved cohort holds the same volumes.
    """
    digests = file_digests(case, store)
    parts = [VERSION, digests, options.spacing, sorted(options.lung_labels)]
    if case.body is not None:
        parts.append([body.VERSION, case.body.label])
        if case.image is None and case.body.shape_file is not None:
            parts.append(volume_fingerprint(case.body.shape_file))
    if case.scale is not None:
        parts.append(case.scale.key)
    if options.cache_compression != "none":
        parts.append([options.cache_compression, options.hu_window])
    return json_digest(parts)[:24]


def cache_cases(cases: Sequence[Case], options: DataOptions, cache: Path) -> list[CachedCase]:
    """Return every case from the cache; those that it lacks are put there, several at a time.

    Raises:
        UserError: A file cannot be read, or the disk is full.
    """
    store = FactStore(cache / CHECKS_FILE)
    find_key = partial(_key, options=options, store=store)
    keys = map_threads(find_key, cases, "Computing checksums")
    store.save()
    folders = [cache / key for key in keys]
    mark_in_use(cache, keys)  # first, so that making room spares what is there already
    missing = {
        folder: case for case, folder in zip(cases, folders, strict=True) if not folder.is_dir()
    }
    tasks = [(case, folder) for folder, case in missing.items()]
    if tasks:
        make_room(cache, [case for case, _ in tasks], options)
    map_processes(partial(_prepare, options=options), tasks, "Preparing volumes")
    return [CachedCase(folder) for folder in folders]


def _prepare(task: tuple[Case, Path], options: DataOptions) -> None:
    """Prepare a case in its folder, which appears complete or not at all."""
    case, folder = task
    image, mask = load_case(case, options.spacing)
    arrays = {
        "mask": mask.array,
        "affine": mask.affine,
        "lung": lung_points(mask.array, options.lung_labels),
        "labels": np.unique(mask.array),
    }
    if image is not None:
        # Resampled values are rounded: they change by less than half a HU, and take half the disk.
        hu = np.rint(image.array) if options.spacing else image.array
        if options.cache_compression != "none":
            hu = hu.clip(math.floor(options.hu_window[0]), math.ceil(options.hu_window[1]))
        arrays["image"] = _compact(hu)
    temporary = folder.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name, array in arrays.items():
            if options.cache_compression == "none" or array.ndim != 3:
                np.save(temporary / f"{name}.npy", array)
            else:
                save_chunks(temporary / f"{name}{SUFFIX}", array)
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise UserError(
                f"{folder.parent} cannot take prepared volumes ({error.strerror or error}). Free "
                "space or set --cache_dir."
            ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_folder(options: DataOptions, run_folder: Path) -> Path:
    """Return `--cache_dir`, or `volumes.cache` beside the run's folder, which runs share.

    Prepared volumes are patients' data, so they stay out of the folder that is passed on. A run of
    an earlier version keeps its `cache/` or `RUN.cache`.
    """
    if options.cache_dir:
        return Path(options.cache_dir)
    earlier = (run_folder / "cache", run_folder.with_name(f"{run_folder.name}.cache"))
    shared = run_folder.with_name(SHARED_CACHE)
    return next((folder for folder in earlier if folder.is_dir()), shared)
