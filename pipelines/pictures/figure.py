"""Picture of one case of a results folder: mask, real scan, volumes and differences."""

from __future__ import annotations

from pathlib import Path

from options.base_options import DataOptions
from options.picture_options import PictureOptions
from pipelines.generation.case_writer import display_window
from pipelines.generation.results import results_data
from pipelines.pictures.panels import (
    case_rows,
    cohort_panels,
    drawn_columns,
    join_panels,
    read_results,
    result_panel,
)
from util.cli import UserError
from util.web.figures import save_slices_png


def draw_case(options: PictureOptions) -> Path:
    """Draw the case in three planes; return the file of the picture.

    Raises:
        UserError: The folder holds no results, or not of this case or attribute, the cohort lies on
            another grid, or the picture has another ending than those that can be written.
    """
    if Path(options.out).suffix.lower() not in (".png", ".svg"):
        raise UserError(f"--out is {options.out!r}; the picture must end in .png or .svg.")
    results = Path(options.RESULTS)
    rows = read_results(results)
    case = options.case or rows[0]["case"]
    rows_of_case = case_rows(results, rows, case)
    column = drawn_columns(rows_of_case, case, options.column)[0]
    data = results_data(results) or DataOptions()
    beside = []
    if options.dataroot:
        beside = cohort_panels(Path(options.dataroot), case, data, options.scan_title)
    panels = [
        result_panel(results, row)
        for row in rows_of_case
        if row["kind"] == "own" or row["column"] == column
    ]
    panels = join_panels(beside, panels, case, options.dataroot)
    out = Path(options.out)
    window, unit = display_window(data), data.terms.unit
    save_slices_png(out, panels, window=window, limit=options.limit, unit=unit)
    return out
