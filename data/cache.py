"""Prepared volumes on disk: canonical, resampled, uncompressed and memory-mapped, so that a patch
costs a slice.
"""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.checks import label_problems
from data.cohort import Case
from data.geometry import Shape, Volume, as_shape, resample
from data.volumes import load_volume
from options.base_options import DataOptions
from util.cli import UserError, main_rank
from util.files import file_fingerprint, json_digest

VERSION = 2  # goes into the keys: raise it when what is stored changes
MAX_LUNG_POINTS = 20_000  # enough places to centre a crop on


@dataclass(frozen=True)
class CachedCase:
    """One case on the model's grid; its arrays are memory-mapped, and opened once in each
    process.
    """

    folder: Path

    def image(self) -> np.ndarray:
        """CT in HU (X, Y, Z): int16 where its values are whole, else float32."""
        return _open(self.folder / "image.npy")

    def mask(self) -> np.ndarray:
        """Labels, uint8 (X, Y, Z)."""
        return _open(self.folder / "mask.npy")

    def affine(self) -> np.ndarray:
        """Of the model's grid, (4, 4), mm."""
        return _open(self.folder / "affine.npy")

    def lung_points(self) -> np.ndarray:
        """Indices int32 (N, 3) of lung voxels, a random share of them where there are many; N is 0
        without lungs.
        """
        return _open(self.folder / "lung.npy")

    def labels(self) -> list[int]:
        """The labels that occur in the mask."""
        return [int(v) for v in _open(self.folder / "labels.npy")]

    def shape(self) -> Shape:
        """(X, Y, Z) of the case on the model's grid."""
        return as_shape(self.mask().shape)


@functools.lru_cache(maxsize=4096)
def _open(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def load_case(case: Case, spacing: Sequence[float] | None) -> tuple[Volume | None, Volume]:
    """CT (linear) and mask (nearest) of a case on the model's grid; the mask as uint8.

    Raises:
        UserError: A file that cannot be read, or a mask whose values are no whole numbers from 0 to
            255.
    """
    mask = load_volume(case.mask)
    if problems := label_problems(case.mask, np.unique(mask.array).tolist()):
        raise UserError(problems[0])
    image = None if case.image is None else load_volume(case.image)
    if spacing is not None:
        mask = resample(mask, spacing=spacing, order=0)
        image = None if image is None else resample(image, grid=(mask.shape, mask.affine), order=1)
    return image, Volume(mask.array.astype(np.uint8), mask.affine)


def lung_points(mask: np.ndarray, lungs: Sequence[int]) -> np.ndarray:
    """Indices int32 (N, 3) of at most `LUNG_POINTS` voxels with a lung label, or with any where no
    lung occurs.
    """
    flat = np.flatnonzero(np.isin(mask, lungs))
    if not flat.size:
        flat = np.flatnonzero(mask)
    if flat.size > MAX_LUNG_POINTS:
        flat = np.random.default_rng(0).choice(flat, MAX_LUNG_POINTS, replace=False)
    return np.stack(np.unravel_index(flat, mask.shape), axis=1).astype(np.int32)


def _compact(hu: np.ndarray) -> np.ndarray:
    """HU as int16 where nothing is lost (resampled CT: by less than half a HU), else as float32."""
    whole = hu if hu.dtype.kind in "iu" else np.rint(hu)
    limits = np.iinfo(np.int16)
    fits = limits.min <= whole.min() and whole.max() <= limits.max
    return whole.astype(np.int16) if fits and np.array_equal(whole, hu) else hu.astype(np.float32)


def _key(case: Case, options: DataOptions) -> str:
    paths = [path for path in (case.image, case.mask) if path is not None]
    files = [file_fingerprint(path) for path in paths]
    return json_digest([VERSION, files, options.spacing, sorted(options.lung_labels)])[:24]


def cache_case(case: Case, options: DataOptions, cache: Path) -> CachedCase:
    """One case in the cache, made where it is not there; the folder appears whole or not at all.

    Raises:
        UserError: A file that cannot be read, or no space left.
    """
    folder = cache / _key(case, options)
    if folder.is_dir():
        return CachedCase(folder)
    image, mask = load_case(case, options.spacing)
    temporary = cache / f".{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir(parents=True)
        if image is not None:
            np.save(
                temporary / "image.npy",
                _compact(np.rint(image.array) if options.spacing else image.array),
            )
        np.save(temporary / "mask.npy", mask.array)
        np.save(temporary / "affine.npy", mask.affine)
        np.save(temporary / "lung.npy", lung_points(mask.array, options.lung_labels))
        np.save(temporary / "labels.npy", np.unique(mask.array))
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            why = error.strerror or error
            raise UserError(
                f"{cache} cannot take prepared volumes ({why}). Free space or set --cache_dir."
            ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return CachedCase(folder)


def cache_cases(cases: Sequence[Case], options: DataOptions, cache: Path) -> list[CachedCase]:
    """Every case in the cache, several at a time."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        jobs = pool.map(lambda case: cache_case(case, options, cache), cases)
        return list(
            tqdm(
                jobs,
                total=len(cases),
                desc="Preparing volumes",
                disable=not main_rank() or len(cases) < 20,
            )
        )


def cache_folder(options: DataOptions, run_folder: Path) -> Path:
    """`--cache_dir`, or `cache/` in the run's folder."""
    return Path(options.cache_dir) if options.cache_dir else run_folder / "cache"
