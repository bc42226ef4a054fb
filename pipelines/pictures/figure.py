"""Picture of one case of a results folder: mask, real scan, volumes and differences."""

from __future__ import annotations

from pathlib import Path

from options.base_options import DataOptions
from options.picture_options import PictureOptions
from pipelines.generation.case_writer import display_window
from pipelines.generation.results import results_data
from pipelines.pictures.panels import case_rows, cohort_panels, read_results, result_panel
from util.web.figures import save_slices_png


def draw_case(options: PictureOptions) -> Path:
    """Draw the case in three planes; return the file of the picture.

    Raises:
        UserError: The folder holds no results, or not of this case.
    """
    results = Path(options.RESULTS)
    rows = read_results(results)
    case = options.case or rows[0]["case"]
    rows_of_case = case_rows(results, rows, case)
    column = options.column
    if not column:
        column = next((row["column"] for row in rows_of_case if row["kind"] == "varied"), "")
    data = results_data(results) or DataOptions()
    panels = []
    if options.dataroot:
        panels = cohort_panels(Path(options.dataroot), case, data, options.scan_title)
    for row in rows_of_case:
        if row["kind"] == "own" or row["column"] == column:
            panels.append(result_panel(results, row))
    out = Path(options.out)
    window, unit = display_window(data), data.terms.unit
    save_slices_png(out, panels, window=window, limit=options.limit, unit=unit)
    return out
