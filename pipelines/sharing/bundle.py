"""A MONAI bundle around an exported run, which `monai.bundle` runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from models.inference import LoadedRun
from util import __version__
from util.files import write_json

RUN_FOLDER = "models/run"
CONFIG_FILE = "configs/inference.json"
METADATA_FILE = "configs/metadata.json"


def write_bundle(folder: Path, run: LoadedRun, card: Path) -> None:
    """Write configs and docs around the run in `RUN_FOLDER`."""
    write_json(folder / CONFIG_FILE, inference_config())
    write_json(folder / METADATA_FILE, metadata(run))
    (folder / "docs").mkdir()
    shutil.copyfile(card, folder / "docs" / "README.md")
    shutil.copyfile(card.with_name("LICENSE"), folder / "LICENSE")


def inference_config() -> dict[str, Any]:
    """Return the config that generates one volume; Mask2CT must be on the Python path."""
    return {
        "imports": ["$import mask2ct"],
        "bundle_root": ".",
        "mask": "mask.nii.gz",
        "prompt": "",
        "seed": 0,
        "output": "generated.nii.gz",
        "model": f"$mask2ct.load(@bundle_root + '/{RUN_FOLDER}')",
        "run": ["$@model.generate(@mask, @prompt, @seed).save(@output)"],
    }


def metadata(run: LoadedRun) -> dict[str, Any]:
    """Return what MONAI's bundle specification asks for."""
    (low, high), is_ct = run.options.data.hu_window, run.options.data.terms.is_ct
    labels = {str(channel): f"label {label}" for channel, label in enumerate(run.labels)}
    image = {"type": "image", "spatial_shape": ["*", "*", "*"], "is_patch_data": False}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/"
        "0.8.1/meta_schema_20240725.json",
        "version": __version__,
        "changelog": {__version__: "exported"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"mask2ct": __version__},
        "name": run.folder.name,
        "task": "Generation of volumes from a mask and clinical text",
        "description": "Generative model trained with Mask2CT; research use only.",
        "authors": "the owners of the run",
        "copyright": "the owners of the run",
        "intended_use": "Research; not for diagnosis, treatment or any other clinical decision.",
        "network_data_format": {
            "inputs": {
                "mask": {
                    **image,
                    "format": "segmentation",
                    "modality": "n/a",
                    "num_channels": len(run.labels),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "channel_def": labels,
                }
            },
            "outputs": {
                "pred": {
                    **image,
                    "format": "hounsfield" if is_ct else "magnitude",
                    "modality": run.options.data.modality.upper(),
                    "num_channels": 1,
                    "dtype": "float32",
                    "value_range": [low, high],
                    "channel_def": {"0": "image"},
                }
            },
        },
    }
