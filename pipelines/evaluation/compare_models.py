"""Comparison of runs: metrics, effects and speed side by side."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from dominate import tags

from options.compare_options import CompareCommand
from options.diffusion_options import EditOptions, SamplingOptions
from options.test_options import InterventionOptions, OutputOptions, TestOptions
from pipelines.evaluation.diversity import ms_ssim
from pipelines.generation import GenerationPlan, open_plan, open_run
from util.web import page_parts
from util.web.tables import effect_summary, metric_summary

log = logging.getLogger(__name__)

SHOWN = (
    "mae_hu",
    "psnr_db",
    "ssim",
    "mean_lung_attenuation_hu",
    "sd_hu",
)  # metrics of the page, where there are scans


def measure_run(
    o: CompareCommand, name: str, generate: Callable[[TestOptions], Path]
) -> dict[str, Any]:
    """One run's figures; its volumes stay in OUT."""
    model = replace(o.model, name=name)
    output = OutputOptions(results_dir=o.compare.OUT, overwrite=True)
    options = TestOptions(
        o.source,
        model,
        InterventionOptions(vary=o.compare.vary),
        SamplingOptions(),
        EditOptions(),
        output,
    )
    folder = generate(options)
    opened = open_plan(options, open_run(options))
    network = opened.run.network
    record = {
        "run": name,
        "model": opened.run.options.generator.model,
        "training steps": opened.run.state["step"],
        "weights, M": sum(p.numel() for p in network.parameters()) / 1e6,
    }
    return record | measure_generation(opened, o.compare.noises) | summarise_results(folder)


def measure_generation(opened: GenerationPlan, count: int) -> dict[str, Any]:
    """Seconds a volume, memory, and the similarity of volumes of the first case under new noise."""
    sampler = opened.run.generator
    whole = opened.samples[0]
    prompt = opened.variants(whole.case).factual.prompt
    made, start = [], time.perf_counter()
    for seed in range(count):
        made.append(whole.to_hu(replace(sampler, seed=seed)(whole, prompt.texts)))
    seconds = (time.perf_counter() - start) / count
    pairs = list(combinations(made, 2))
    lungs = np.isin(whole.labels, opened.data.lung_labels)
    on_gpu = sampler.device.type == "cuda"
    memory = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "seconds a volume": seconds,
        "peak GiB so far": memory / 2**30,
        "MS-SSIM of pairs, new noise": float(
            np.mean([ms_ssim(a, b, opened.data.hu_window) for a, b in pairs])
        ),
        "lung difference of pairs, HU": float(
            np.mean([np.abs(a - b)[lungs].mean() for a, b in pairs])
        ),
    }


def summarise_results(folder: Path) -> dict[str, Any]:
    """Mean effects in the lungs and mean fidelity, from a results folder."""
    found: dict[str, Any] = {}
    effects, metrics = (
        pd.read_csv(folder / f"{name}.csv", dtype={"from": str, "to": str})
        for name in ("effects", "metrics")
    )
    if len(effects):
        for row in frame_rows(effect_summary(frame_rows(effects))):
            found[f"{row['attribute']}: {row['from']} to {row['to']}, HU"] = row["mean HU"]
    for row in frame_rows(metric_summary(frame_rows(metrics))):
        if row["region"] == "lungs" and row["metric"].removeprefix("real_") in SHOWN:
            found[f"lungs: {row['metric']}"] = row["mean"]
    return found


def frame_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def write_comparison_page(out: Path, frame: pd.DataFrame) -> Path:
    """A figure a row, a run a column, with links to the runs' own pages."""
    page_parts.copy_assets(out / "web", "page.css")
    document = page_parts.new_document("Models side by side", "web/")
    with document:
        with tags.header(cls="top"):
            tags.h1("Models side by side")
            page_parts.cautions(
                (
                    "All runs made the same cases. Seconds and memory are this machine's, memory "
                    "the highest so far. Where pairs under new noise are alike to 1, noise changes "
                    "nothing.",
                )
            )
        with tags.main(), tags.section(cls="card"):
            tags.h2("Figures")
            turned = frame.set_index("run").T.reset_index().rename(columns={"index": "figure"})
            page_parts.frame_table(turned)
            tags.p(
                "Volumes and pictures: ",
                *(
                    tags.a(f"{name} ", href=page_parts.link(f"{name}/{folder.name}/index.html"))
                    for name in frame["run"]
                    for folder in sorted((out / name).glob("*"))
                    if folder.is_dir()
                ),
            )
    return page_parts.write_document(document, out / "index.html")
