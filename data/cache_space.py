"""Room for prepared volumes: what they need, what is free, and which old ones make place."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.cohort import Case
from data.geometry import grid_with_spacing
from data.volumes import read_header
from options.base_options import DataOptions
from util.cli import UserError, counted

log = logging.getLogger(__name__)

IN_USE = ".in_use"  # folder of the cache: a file for each process, with the names that it uses
BYTES_PER_VOXEL = 3  # int16 HU and uint8 labels
COMPRESSED_SHARE = 1 / 3  # of the size, at most, measured on scans at 1 mm
MAX_HEADERS = 100  # read to estimate the size of many cases
GB = 1e9

_marks: list[int] = []  # descriptors whose locks end with this process


def needed_bytes(cases: Sequence[Case], options: DataOptions) -> float:
    """Estimate the size on disk of prepared cases, from the headers of at most `MAX_HEADERS`."""
    if not cases:
        return 0.0
    chosen = np.unique(np.linspace(0, len(cases) - 1, MAX_HEADERS).astype(int))
    sizes = []
    for index in chosen:
        header = read_header(cases[index].mask)
        shape = header.shape
        if options.spacing is not None:
            shape = grid_with_spacing(shape, header.affine, options.spacing)[0]
        sizes.append(np.prod(shape, dtype=float) * BYTES_PER_VOXEL)
    share = 1.0 if options.cache_compression == "none" else COMPRESSED_SHARE
    return float(np.mean(sizes)) * len(cases) * share


def make_room(cache: Path, cases: Sequence[Case], options: DataOptions) -> None:
    """State the room that volumes need before they are prepared, and remove old ones for it.

    Removed are those that no process uses, the longest unused first, until all together take
    `cache_gb` at most.

    Raises:
        UserError: The disk has less room.
    """
    needed = needed_bytes(cases, options)
    removed = evict(cache, options.cache_gb * GB - needed) if options.cache_gb else 0.0
    existing = next(path for path in (cache, *cache.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    log.info(
        "Preparing %s in %s: about %.2f GB of %.1f GB free there%s.",
        counted(len(cases), "volume"),
        cache,
        needed / GB,
        free / GB,
        f", after removing {removed / GB:.1f} GB of old ones (--cache_gb)" if removed else "",
    )
    if needed > free:
        raise UserError(
            f"Prepared volumes need about {needed / GB:.1f} GB, and {cache} has {free / GB:.1f} GB "
            "free. Make room, choose another --cache_dir, a coarser --spacing, or "
            "--cache_compression blosc2."
        )


def mark_in_use(cache: Path, names: Iterable[str]) -> None:
    """Keep prepared volumes from being removed, as long as this process runs.

    Args:
        cache: Folder of prepared volumes.
        names: Their names; those that are not there yet are kept once they are.
    """
    names = list(dict.fromkeys(names))
    (cache / IN_USE).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache / IN_USE / uuid.uuid4().hex, os.O_RDWR | os.O_CREAT, 0o666)
    os.write(descriptor, "\n".join(names).encode())
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError:
        log.debug("%s has no locks", cache)
    _marks.append(descriptor)
    for name in names:
        if (cache / name).is_dir():
            os.utime(cache / name)  # the time of its last use


def _names_in_use(cache: Path) -> set[str]:
    """Return the names that running processes use; marks that ended processes left are removed."""
    names: set[str] = set()
    for path in (cache / IN_USE).glob("*"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            except OSError:  # its process runs, or the file system has no locks
                names.update(file.read().decode().split("\n"))
    return names


def evict(cache: Path, limit: float) -> float:
    """Remove prepared volumes that are not in use until the others take `limit` bytes at most.

    Returns:
        Bytes removed.
    """
    if not cache.is_dir():
        return 0.0
    folders = [path for path in cache.iterdir() if (path / "labels.npy").is_file()]
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in folders}
    used = _names_in_use(cache)
    total, removed = float(sum(sizes.values())), 0.0
    for path in sorted(folders, key=lambda folder: folder.stat().st_mtime):
        if total - removed <= limit:
            break
        if path.name not in used:
            shutil.rmtree(path, ignore_errors=True)
            removed += sizes[path]
    return removed
