"""Sets runs side by side on one cohort: effects, fidelity, diversity, seconds a volume, size, memory; a page and a table."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

import numpy as np
import pandas as pd
import torch
from dominate import tags

import test
from data.whole import WholeVolumes
from options.diffusion_options import EditOptions, SamplingOptions
from options.parser import argument, flag, group, parse
from options.test_options import ArmOptions, ModelOptions, OutputOptions, SourceOptions, TestOptions
from util import html, runs
from util.cli import UserError, run
from util.evidence.diversity import ms_ssim
from util.tables import effect_summary, metric_summary

log = logging.getLogger(__name__)

SHOWN = ("mae_hu", "psnr_db", "ssim", "mean_lung_attenuation_hu", "sd_hu")  # metrics of the page, where there are scans


@dataclass(frozen=True)
class CompareOptions:
    """What is compared."""

    OUT: str = argument("Folder for the page, the table and the volumes.")
    run: tuple[str, ...] = flag((), "Name of a run; repeated for the others.")
    vary: tuple[str, ...] = flag((), 'Attribute whose effect is compared, as "COLUMN=A,B"; may be repeated.')
    noises: int = flag(4, "Volumes of one case, each with new noise, whose similarity tells the diversity.", low=2)


@dataclass(frozen=True)
class Options:
    """Everything the command takes."""

    compare: CompareOptions = group(CompareOptions, "Comparison")
    source: SourceOptions = group(SourceOptions, "Cases")
    model: ModelOptions = group(ModelOptions, "Runs (all but --name)")


def measure(o: Options, name: str) -> dict[str, Any]:
    """One run's figures; its volumes stay in OUT."""
    model = replace(o.model, name=name)
    output = OutputOptions(results_dir=o.compare.OUT, overwrite=True)
    options = TestOptions(o.source, model, ArmOptions(vary=o.compare.vary), SamplingOptions(), EditOptions(), output)
    folder = test.test_cohort(options)
    opened = test.open_test(options, test.open_run(options))
    network = opened.run.sampler.network
    record = {"run": name, "model": opened.run.options.generator.model, "training steps": opened.run.state["step"],
              "weights, M": sum(p.numel() for p in network.parameters()) / 1e6}
    return record | noises(opened, o.compare.noises) | tables(folder)


def noises(opened: test.Test, count: int) -> dict[str, Any]:
    """Seconds a volume, memory, and the similarity of volumes of the first case under new noise."""
    sampler = opened.run.sampler
    multiple = [sampler.model.size_multiple] * 3
    whole = WholeVolumes(opened.cases[:1], opened.run.labels, opened.data, opened.run.options.patch.patch_size, multiple)[0]
    own, _ = opened.arms(whole.case)
    made, start = [], time.perf_counter()
    for seed in range(count):
        volume = replace(sampler, seed=seed)(whole.mask, whole.coords, whole.case.id, [p.text for p in own.prompt])
        made.append(opened.hu(whole, volume))
    seconds = (time.perf_counter() - start) / count
    pairs = list(combinations(made, 2))
    lungs = np.isin(whole.labels, opened.data.lung_labels)
    on_gpu = sampler.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds a volume": seconds, "peak GiB so far": memory / 2**30,
            "MS-SSIM of pairs, new noise": float(np.mean([ms_ssim(a, b, opened.data.hu_window) for a, b in pairs])),
            "lung difference of pairs, HU": float(np.mean([np.abs(a - b)[lungs].mean() for a, b in pairs]))}


def tables(folder: Path) -> dict[str, Any]:
    """Mean effects in the lungs and mean fidelity, from a results folder."""
    found: dict[str, Any] = {}
    effects, metrics = (
        pd.read_csv(folder / f"{name}.csv", dtype={"from": str, "to": str}) for name in ("effects", "metrics"))
    if len(effects):
        for row in records(effect_summary(records(effects))):
            found[f"{row['attribute']}: {row['from']} to {row['to']}, HU"] = row["mean HU"]
    for row in records(metric_summary(records(metrics))):
        if row["region"] == "lungs" and row["metric"].removeprefix("real_") in SHOWN:
            found[f"lungs: {row['metric']}"] = row["mean"]
    return found


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def write_page(out: Path, frame: pd.DataFrame) -> Path:
    """A figure a row, a run a column, with links to the runs' own pages."""
    html.copy_assets(out / "web", "page.css")
    document = html.new_document("Models side by side", "web/")
    with document:
        with tags.header(cls="top"):
            tags.h1("Models side by side")
            html.cautions(("All runs made the same cases. Seconds and memory are this machine's, memory the highest so far. "
                           "Where pairs under new noise are alike to 1, noise changes nothing.",))
        with tags.main(), tags.section(cls="card"):
            tags.h2("Figures")
            turned = frame.set_index("run").T.reset_index().rename(columns={"index": "figure"})
            html.frame_table(turned)
            tags.p("Volumes and pictures: ", *(tags.a(f"{name} ", href=html.link(f"{name}/{folder.name}/index.html"))
                   for name in frame["run"] for folder in sorted((out / name).glob("*")) if folder.is_dir()))
    return html.write_document(document, out / "index.html")


def main(argv: Sequence[str] | None = None) -> None:
    o = parse(Options, __doc__ or "", argv)
    if len(o.compare.run) < 2:
        raise UserError(f"--run names {len(o.compare.run)} runs; give it twice at least, once for each run to compare.")
    for name in o.compare.run:
        runs.saved_options(runs.run_folder(o.model.checkpoints_dir, name))  # or say which are there
    frame = pd.DataFrame([measure(o, name) for name in o.compare.run])
    out = Path(o.compare.OUT)
    frame.to_csv(out / "models.csv", index=False)
    log.info("\n%s\n%s", frame.set_index("run").T.to_string(), write_page(out, frame))


if __name__ == "__main__":
    run(main)
