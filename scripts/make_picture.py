"""Makes a picture (PNG) of one case of a results folder: mask, real scan, volumes and differences
in three planes.
"""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from nibabel.affines import voxel_sizes

from data.volumes import load_volume
from options.parser import parse
from options.picture_options import PictureCommand
from util.cli import UserError, format_list, run_command
from util.web.figures import Panel, save_slices_png

log = logging.getLogger(__name__)


def main() -> None:
    o = parse(PictureCommand, __doc__ or "").picture
    results, root = Path(o.RESULTS), Path(o.dataroot)
    table = results / "volumes.csv"
    if not table.is_file():
        raise UserError(f"{table} does not exist; RESULTS is the folder that test.py wrote.")
    rows = list(csv.DictReader(table.open()))
    case = o.case or rows[0]["case"]
    own = [r for r in rows if r["case"] == case]
    if not own:
        raise UserError(
            f"--case {case!r} is not in {table}; it has: "
            f"{format_list(sorted({r['case'] for r in rows}))}."
        )
    column = o.column or next((r["column"] for r in own if r["kind"] == "varied"), "")
    chosen = [r for r in own if r["kind"] == "own" or r["column"] == column]
    panels = []
    for folder, kind, title in (("gtlung", "mask", "mask"), ("img", "ct", "real scan")):
        found = sorted((root / folder).glob(f"{case}.*")) if o.dataroot else []
        panels += [make_panel(path, kind, title) for path in found[:1]]
    for row in chosen:
        title = {
            "own": "generated",
            "varied": f"{column}\n= {row['value']}",
            "difference": f"{row['to']}\nminus {row['from']}",
        }[row["kind"]]
        panels.append(
            make_panel(
                results / row["file"], "difference" if row["kind"] == "difference" else "ct", title
            )
        )
    save_slices_png(Path(o.out), panels, limit=o.limit)
    log.info("Wrote %s", o.out)


def make_panel(path: Path, kind: str, title: str) -> Panel:
    volume = load_volume(path)
    return Panel(title, kind, volume.array, voxel_sizes(volume.affine))  # type: ignore[arg-type]


if __name__ == "__main__":
    run_command(main)
