"""Origin of synthetic cases: columns of their table, and the file that declares edited scans."""

from __future__ import annotations

from pathlib import Path

from data.cohort import IMAGES
from util.files import read_csv

# Columns of every synthetic row. `data.text.template` keeps these out of all texts.
SYNTHETIC = "SYNTHETIC"
HOW = "SYNTHETIC HOW"
SOURCE = "SYNTHETIC SOURCE"
CHANGE = "SYNTHETIC CHANGE"
SEED = "SYNTHETIC SEED"
RUN = "SYNTHETIC RUN"
PROVENANCE = (SYNTHETIC, HOW, SOURCE, CHANGE, SEED, RUN)

EDITS_FILE = "edits.csv"  # of a cohort of edited scans: one row per case and changed column
EDIT_COLUMNS = (
    "case",
    "source",
    "how",
    "column",
    "from",
    "to",
    "mean_change_hu",
    "mean_absolute_change_hu",
)


def declared_edits(folder: Path) -> dict[str, str]:
    """Return the edited cases of a folder of volumes, with the case whose scan was edited.

    Args:
        folder: A cohort, or its folder of scans.

    Raises:
        UserError: `edits.csv` is damaged.
    """
    root = folder.resolve()
    path = (root.parent if root.name == IMAGES else root) / EDITS_FILE
    if not path.is_file():
        return {}
    return {row["case"]: row["source"] for row in read_csv(path, ["case", "source"])}
