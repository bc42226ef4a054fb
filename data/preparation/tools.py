"""Segmentation by programs that are installed apart: lungmask and TotalSegmentator, called on a
NIfTI file.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.preparation.lungs import AIRWAY, LEFT, RIGHT
from data.volumes import load_volume
from util.cli import UserError

PROGRAMS = {"lungmask": "lungmask", "totalsegmentator": "TotalSegmentator"}
LOBES = {
    LEFT: ("lung_upper_lobe_left", "lung_lower_lobe_left"),
    RIGHT: ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    AIRWAY: ("trachea",),
}


def check_installed(tool: str) -> None:
    """Raises `UserError` that says how to get a tool which is not installed."""
    if shutil.which(PROGRAMS[tool]) is None:
        raise UserError(
            f"--masks {tool}: the program {PROGRAMS[tool]} is not installed. Install it (pip "
            f"install {PROGRAMS[tool]}) and run it once on any scan on a machine with network: it "
            "fetches its weights into your home folder, which can be copied. Or use --masks "
            "classic, which needs neither."
        )


def segment(
    tool: str, image: Path, folder: Path, words: str = "", hours: float = 2.0
) -> NDArray[np.uint8]:
    """Runs a tool on a NIfTI file.

    Args:
        tool: "lungmask" or "totalsegmentator".
        image: The CT.
        folder: An empty folder for what the tool writes.
        words: Further words of its command line.
        hours: It is stopped after this time.

    Returns:
        (X, Y, Z) in RAS: left lung 1, right lung 2; airway 3 from TotalSegmentator (its trachea).

    Raises:
        UserError: The tool is missing, fails, takes too long, or writes nothing usable.
    """
    check_installed(tool)
    if tool == "lungmask":
        out = folder / "lungs.nii.gz"
        _call([PROGRAMS[tool], str(image), str(out), *shlex.split(words)], hours)
        return _sides(_read(tool, out))
    names = [name for group in LOBES.values() for name in group]
    _call(
        [
            PROGRAMS[tool],
            "-i",
            str(image),
            "-o",
            str(folder),
            "--roi_subset",
            *names,
            *shlex.split(words),
        ],
        hours,
    )
    labels: NDArray[np.uint8] | None = None
    for label, group in LOBES.items():
        for name in group:
            part = _read(tool, folder / f"{name}.nii.gz")
            labels = np.zeros(part.shape, np.uint8) if labels is None else labels
            labels[part > 0] = label
    assert labels is not None
    return labels


def _call(command: list[str], hours: float) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=hours * 3600, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} took longer than --tool_hours {hours:g} and was stopped."
        ) from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise UserError(
            f"{command[0]} failed with exit code {done.returncode}: {said or 'it said nothing'}. "
            "If it could not fetch its weights, run it once on a machine with network and copy "
            "them."
        )


def _read(tool: str, path: Path) -> NDArray[np.integer]:
    if not path.is_file():
        raise UserError(
            f"{PROGRAMS[tool]} ended well, but wrote no {path.name}. Is its version too old or too "
            "new?"
        )
    return load_volume(path).array


def _sides(found: NDArray[np.integer]) -> NDArray[np.uint8]:
    """A map of two lungs as left 1 and right 2, by where they lie: which number is which differs
    between models.
    """
    labels = np.zeros(found.shape, np.uint8)
    values = [v for v in np.unique(found) if v > 0]
    at = {v: float(np.nonzero((found == v).any((1, 2)))[0].mean()) for v in values}
    middle = (min(at.values()) + max(at.values())) / 2 if len(at) > 1 else (found.shape[0] - 1) / 2
    for value, x in at.items():
        labels[found == value] = LEFT if x < middle else RIGHT
    return labels
