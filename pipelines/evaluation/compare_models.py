"""Comparison of runs: metrics, effects and speed side by side."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from dominate import tags

from models.inference import VolumeGenerator
from options.base_options import DataOptions
from options.compare_options import CompareCommand
from options.test_options import InterventionOptions, OutputOptions, TestOptions
from pipelines.evaluation.diversity import ms_ssim
from pipelines.generation.plan import GenerationPlan, open_plan, open_run
from pipelines.generation.results import results_data, results_folder
from pipelines.pictures.panels import cohort_panels, read_results, result_panel
from util.cli import UserError, counted, format_list
from util.files import claim_folder, read_csv, write_frame, write_json
from util.metrics.texture import detail_correlation
from util.modality import CT, Terms
from util.training import runs
from util.web import page_parts, viewer_parts
from util.web.figures import Panel
from util.web.page_parts import option_text
from util.web.picture_row import PictureRow, write_panels
from util.web.tables import metric_summary

log = logging.getLogger(__name__)

TITLE = "Models side by side"
RECORD = "comparison.json"  # marks a folder of this command
CAUTIONS = (
    "Each run is one training: another seed would give other values, so that a small difference "
    "between runs shows nothing.",
    "Seconds and memory are those of this machine; memory is the highest of the process so far, "
    "earlier runs included. Where the similarity of pairs under new noise is 1, noise changes "
    "nothing.",
)
# Metrics of the page, where there are scans, and their names for readers.
SHOWN = {
    "mae_hu": "mean absolute error, HU",
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "mean_lung_attenuation_hu": "mean density, HU",
    "sd_hu": "SD of density, HU",
    "detail_sd_hu": "SD of fine detail, HU",
    "vessel_share": "share of vessels",
}

# Metrics of the sentence at the top, by their column.
HEADLINE = {
    "lungs: mae_hu": "Mean absolute error in the lungs, HU",
    "lungs: detail_sd_hu": "detail SD, HU",
    "MS-SSIM of pairs, new noise": "similarity under new noise",
}
REAL = ": real_"  # in columns of real scans, behind the region
SIZE = "small"  # of the pictures at first: those of two runs stand in one row
PICTURED_CASES = 3
DIFFERENCE_LIMIT = 50.0  # HU, the same for all runs

GenerateCohort = Callable[[TestOptions], Path]


def compare_models(command: CompareCommand, generate_cohort: GenerateCohort) -> Path:
    """Generate the same cases by every run, and write a table and a page; return the page.

    Args:
        command: The command's options.
        generate_cohort: Generates a cohort as test.py does, and returns the results folder.

    Raises:
        UserError: Fewer than two runs, one that is not there or is named twice, or a folder of
            something else.
    """
    names = command.compare.run
    out = Path(command.compare.OUT)
    if len(names) < 2:
        raise UserError(
            f"--run names {len(names)} runs; give it twice at least, once for each run to compare."
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--run names {format_list(repeated)} more than once. Name each run once.")
    check_modalities(command)  # also a run that is not there is an error before anything long
    claim_folder(out, [RECORD, "models.csv"], overwrite=True, flag="OUT")
    check_cases({name: selected_cases(command, name) for name in names})
    write_json(out / RECORD, {"runs": list(names)})
    frame = pd.DataFrame([measure_run(command, name, generate_cohort) for name in names])
    write_frame(out / "models.csv", frame)
    folders = {name: results_folder(_test_options(command, name)) for name in names}
    data = results_data(folders[names[0]])
    rows = write_pictures(out, folders, command.source.dataroot, data)
    page = write_comparison_page(out, frame, rows, data, grid_cautions(command))
    log.info("\n%s\n%s", frame.set_index("run").T.to_string(), page)
    return page


def check_modalities(command: CompareCommand) -> None:
    """Raise `UserError` where the runs do not generate volumes of one modality and unit."""
    modalities = {}
    for name in command.compare.run:
        folder = runs.find_run(command.model.checkpoints_dir, name)
        modalities[name] = runs.read_options(folder).get("data", {}).get("modality", "ct")
    if len(set(modalities.values())) > 1:
        listed = format_list([f"{name} ({modality})" for name, modality in modalities.items()])
        raise UserError(
            f"--run: the runs were trained on several modalities: {listed}. Compare those of one."
        )


def selected_cases(command: CompareCommand, name: str) -> list[str]:
    """Return the cases that a run is to generate."""
    options = _test_options(command, name)
    return [case.id for case in open_plan(options, open_run(options)).cases]


def check_cases(cases: Mapping[str, Sequence[str]]) -> None:
    """Raise `UserError` where runs, by name, have other cases: their figures would not compare."""
    first, *others = cases
    for name in others:
        if cases[name] != cases[first]:
            raise UserError(
                f"--run: {first} and {name} were trained with different splits, so that they would "
                f"generate different cases ({format_list(cases[first], 3)}; "
                f"{format_list(cases[name], 3)}). Compare runs of one splits.json, or all cases by "
                "--split all; those that a run was trained on are named in a warning."
            )


def grid_cautions(command: CompareCommand) -> list[str]:
    """Return what a reader has to know of runs that work on other voxels or windows."""
    cautions = []
    for flag in ("spacing", "hu_window"):
        values = {}
        for name in command.compare.run:
            folder = runs.find_run(command.model.checkpoints_dir, name)
            values[name] = runs.read_options(folder).get("data", {}).get(flag)
        if len({str(value) for value in values.values()}) > 1:
            listed = "; ".join(f"{name}: {option_text(value)}" for name, value in values.items())
            cautions.append(
                f"The runs differ in --{flag} ({listed}). Errors, SSIM, detail and vessels depend "
                "on it, and the values of the real scans are as the first run reads them."
            )
    return cautions


def measure_run(
    command: CompareCommand, name: str, generate_cohort: GenerateCohort
) -> dict[str, Any]:
    """Return the metrics of one run; its volumes stay in OUT."""
    options = _test_options(command, name)
    folder = generate_cohort(options)
    plan = open_plan(options, open_run(options))
    record = {
        "run": name,
        "cases": len(plan.cases),
        "model": plan.run.options.generator.model,
        "training steps": plan.run.state["step"],
        "weights, M": sum(p.numel() for p in plan.run.network.parameters()) / 1e6,
    }
    terms = plan.data.terms
    measured = measure_generation(plan, command.compare.noises)
    return record | measured | summarise_results(folder, terms)


def _test_options(command: CompareCommand, name: str) -> TestOptions:
    """Return the options of test.py for one of the runs."""
    return TestOptions(
        source=command.source,
        model=replace(command.model, name=name),
        arms=InterventionOptions(vary=command.compare.vary),
        output=OutputOptions(results_dir=command.compare.OUT, overwrite=True),
    )


def measure_generation(plan: GenerationPlan, count: int) -> dict[str, Any]:
    """Measure `count` volumes of the first case, each with new noise.

    Returns:
        Seconds per volume, memory, and similarity of the volumes.
    """
    generator = plan.run.generator
    sample = plan.samples[0]
    prompt = plan.variants(sample.case).factual.prompt
    start = time.perf_counter()
    volumes = [
        sample.to_hu(replace(generator, seed=seed)(sample, prompt.texts)) for seed in range(count)
    ]
    seconds = (time.perf_counter() - start) / count
    lungs = np.isin(sample.labels, plan.data.whole_lung_labels)
    similarities = []
    differences = []
    correlations = []
    for one, two in combinations(volumes, 2):
        correlations.append(detail_correlation(one, two, lungs, sample.spacing))
        similarities.append(ms_ssim(one, two, plan.data.hu_window))
        differences.append(np.abs(one - two)[lungs].mean())
    return {
        "seconds a volume": seconds,
        "peak GiB so far": _peak_memory(generator) / 2**30,
        "MS-SSIM of pairs, new noise": float(np.mean(similarities)),
        plan.data.terms.text("lung difference of pairs, HU"): float(np.mean(differences)),
        plan.data.terms.text("correlation of lung detail of pairs"): float(np.mean(correlations)),
    }


def _peak_memory(generator: VolumeGenerator) -> int:
    """Return the highest memory so far in bytes, of the GPU or of the process."""
    if generator.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summarise_results(folder: Path, terms: Terms = CT) -> dict[str, Any]:
    """Return mean effects in the lungs and mean fidelity of a results folder.

    Args:
        terms: Unit and names of the modality, which the tables have.
    """
    summary: dict[str, Any] = {}
    effects = read_csv(folder / "effects.csv")
    metrics = read_csv(folder / "metrics.csv")
    region, change = terms.name("lungs"), terms.name("mean_diff_hu")
    means: dict[str, list[float]] = {}
    for row in effects:
        if row["region"] == region:
            contrast = f"{row['column']}: {row['from']} to {row['to']}, {terms.unit}"
            means.setdefault(contrast, []).append(float(row[change]))
    summary |= {contrast: float(np.mean(values)) for contrast, values in means.items()}
    shown = {terms.name(name) for name in SHOWN if terms.has(name)}
    for record in metric_summary([dict(row) for row in metrics]).to_dict("records"):
        if record["region"] == region and record["metric"].removeprefix("real_") in shown:
            summary[f"{region}: {record['metric']}"] = record["mean"]
    return summary


def write_pictures(
    out: Path, folders: Mapping[str, Path], dataroot: str, data: DataOptions | None = None
) -> dict[str, PictureRow]:
    """Write the voxels of the first cases, as every run generated them; return rows by case.

    Args:
        out: Folder of the page, which holds the runs' results.
        folders: Results folder of each run.
        dataroot: The cohort, for masks and real scans; "" for none.
        data: How the cohort is read; as chest CT by default.
    """
    web = out / "web"
    for old in web.glob("case-*"):
        shutil.rmtree(old)
    tables = {name: read_results(folder) for name, folder in folders.items()}
    cases = list(dict.fromkeys(row["case"] for table in tables.values() for row in table))
    rows = {}
    for number, case in enumerate(cases[:PICTURED_CASES], 1):
        panels = cohort_panels(Path(dataroot), case, data) if dataroot else []
        for kind in ("own", "difference"):
            for name, folder in folders.items():
                for row in tables[name]:
                    if row["case"] == case and row["kind"] == kind:
                        panels.append(_panel_of_run(name, folder, row))
        shape = panels[0].array.shape
        panels = [panel for panel in panels if panel.array.shape == shape]
        panels.sort(key=lambda panel: panel.kind == "mask")  # the page begins with the scan
        rows[case] = write_panels(web, f"case-{number:04d}", case, panels)
    return rows


def _panel_of_run(name: str, folder: Path, row: dict[str, str]) -> Panel:
    """Return a volume of a run, named after it."""
    panel = result_panel(folder, row)
    caption = ""
    if row["kind"] == "difference":
        caption = f"{row['column']}: {row['to']} minus {row['from']}"
    link = f"{name}/{folder.name}/{row['file']}"
    return replace(panel, title=name, caption=caption, file=link)


def comparison_sentence(frame: pd.DataFrame, terms: Terms = CT) -> str:
    """Return the metrics of `HEADLINE` that the runs have, run by run, in a sentence."""
    parts = []
    for column, name in HEADLINE.items():
        region, colon, metric = column.partition(": ")
        column = f"{terms.name(region)}{colon}{terms.name(metric)}" if metric else column
        if column in frame and frame[column].notna().all():
            values = zip(frame["run"], frame[column], strict=True)
            parts.append(f"{name}: {', '.join(f'{run} {value:.3g}' for run, value in values)}")
    columns = [str(column) for column in frame.columns]
    unit = f", {terms.unit}"
    effects = [column for column in columns if column.endswith(unit) and ": " in column]
    for effect in effects[:1]:
        values = zip(frame["run"], frame[effect], strict=True)
        parts.append(f"{effect}: {', '.join(f'{run} {value:+.1f}' for run, value in values)}")
    cases = counted(int(frame["cases"].iloc[0]), "case") if "cases" in frame else "cases"
    sentence = f"{len(frame)} runs on the same {cases}."
    return f"{sentence} {'; '.join(parts)}." if parts else sentence


def metric_table(frame: pd.DataFrame, terms: Terms = CT) -> pd.DataFrame:
    """Return a row per metric: its name, its value in the real scans, and that of each run.

    Args:
        frame: One row per run, as in models.csv.
        terms: Words of the modality.
    """
    names = {terms.name(name): text for name, text in SHOWN.items()}
    real = {c.replace(REAL, ": "): frame[c].iloc[0] for c in frame.columns if REAL in c}
    rows = []
    for column in frame.columns:
        if column == "run" or REAL in column:
            continue
        region, colon, metric = str(column).partition(": ")
        name = f"{region}{colon}{names.get(metric, metric)}"
        row = {"metric": name, "real scans": real.get(column, "")} if real else {"metric": name}
        rows.append(row | dict(zip(frame["run"], frame[column], strict=True)))
    return pd.DataFrame(rows)


def write_comparison_page(
    out: Path,
    frame: pd.DataFrame,
    pictures: Mapping[str, PictureRow] | None = None,
    data: DataOptions | None = None,
    cautions: Sequence[str] = (),
) -> Path:
    """Write a page of the same cases by each run, and a table of metrics; return it.

    Args:
        out: Folder of the page, which holds the runs' results.
        frame: One row per run.
        pictures: Rows of pictures by case.
        data: How the runs read scans; as chest CT by default.
        cautions: What a reader has to know of these runs.
    """
    pictures = pictures or {}
    data = data or DataOptions()
    terms = data.terms
    scripts = viewer_parts.SCRIPTS if pictures else ()
    page_parts.copy_assets(out / "web", "page.css", *scripts)
    document = page_parts.new_document(TITLE, "web/", scripts=scripts)
    labels = sorted({label for row in pictures.values() for label in row.labels})
    config = viewer_parts.viewer_config(data.hu_window, 0.0, labels, terms=terms)
    document.body["data-config"] = json.dumps(config)
    document.body["style"] = f"--panel:{viewer_parts.SIZES[SIZE]}px"
    with document:
        page_parts.page_header(
            TITLE,
            tags.p(page_parts.typeset(comparison_sentence(frame, terms)), cls="headline"),
            cautions=(page_parts.RESEARCH_ONLY,),
            links={"models.csv": "models.csv"},
        )
        with tags.main():
            if pictures:
                with viewer_parts.toolbar("View of all cases"):
                    viewer_parts.plane_and_window("axial", terms)
                    viewer_parts.limit_choice()
                    viewer_parts.overlay_choice()
                    page_parts.check_box("lines", "Outlines")
                    viewer_parts.size_choice(SIZE)
            for case, row in pictures.items():
                with tags.section(cls="case card", id=row.key, **row.attributes()):
                    tags.h2(f"{case} by each run")
                    viewer_parts.slice_slider(f"Slice of {case}")
                    row.add(DIFFERENCE_LIMIT, terms.label_names)
            with page_parts.card("Metrics"):
                page_parts.frame_table(metric_table(frame, terms))
                links = []
                for name in frame["run"]:
                    for page in sorted((out / name).glob("*/index.html")):
                        address = page_parts.link(f"{name}/{page.parent.name}/index.html")
                        links.append(tags.a(f"{name} ", href=address))
                if links:
                    tags.p("Volumes and pictures: ", *links)
            page_parts.bullet_list((*cautions, *CAUTIONS, *page_parts.CAUTIONS[1:]), "notes")
    return page_parts.write_document(document, out / "index.html", terms)
