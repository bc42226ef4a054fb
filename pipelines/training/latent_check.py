"""Check of the autoencoder that a latent diffusion is about to be trained in."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from data.volume_dataset import VolumeDataset
from models.base_model import GenerativeModel
from models.diffusion.latent_space import LatentSpace
from options.train_options import TrainOptions
from pipelines.autoencoder.check import check_reconstruction, report_check
from pipelines.training.study import Study
from pipelines.training.validation import validation_window
from util.files import write_frame

CHECKED_RECONSTRUCTIONS = 2  # training scans that the autoencoder of latents is checked on
RECONSTRUCTION_FILE = "autoencoder.csv"  # in the run's folder


def check_latents(
    options: TrainOptions, study: Study, model: GenerativeModel, device: torch.device, folder: Path
) -> None:
    """Reconstruct training scans by the autoencoder of a latent diffusion, and report the loss.

    No later step restores what the autoencoder loses. The numbers are written to the run's folder.
    """
    space = getattr(model, "space", None)
    if not isinstance(space, LatentSpace):
        return
    size, multiple = options.patch.patch_size, model.size_multiple
    cases = study.training_cases[:CHECKED_RECONSTRUCTIONS]
    samples = list(VolumeDataset(cases, study.cohort.labels, options.data, size, [multiple] * 3))
    window = validation_window(size, multiple, [sample.channels.shape for sample in samples])
    check = check_reconstruction(space, samples, window, options.data, device)
    terms = options.data.terms
    write_frame(folder / RECONSTRUCTION_FILE, pd.DataFrame(terms.rows(check.rows)))
    report_check(check, terms)
