"""A training before its first step: what can be wrong is checked, then what stays is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.cache import cache_folder
from data.label_schemes import recognise_labels
from data.patch_dataset import PatchDataset
from models.base_model import MODELS, GenerativeModel
from options.train_options import TrainOptions
from pipelines.evidence import EVIDENCE
from pipelines.training.components import (
    make_dataset,
    make_monitor,
    make_trainer,
    open_folder,
    save_body_shape,
)
from pipelines.training.data_record import check_unchanged, record_data
from pipelines.training.fine_tuning import start_model
from pipelines.training.latent_check import check_latents
from pipelines.training.shutdown import memory_advice
from pipelines.training.study import (
    Study,
    ensure_cohort_clip,
    find_evidence,
    fix_labels,
    fix_text_texture,
    open_study,
    restore_study,
    warn_constant_text,
    weigh_by_relevance,
)
from pipelines.training.validation import Validation, make_validation
from util.notices import Notice
from util.training import checkpoint, runs
from util.training.devices import make_accelerator
from util.training.monitor import Monitor
from util.training.trainer import Trainer


@dataclass(frozen=True)
class Session:
    """A training that has been checked; nothing but its own text encoder is written yet.

    Attributes:
        cache: Folder of the prepared volumes.
        resumed: Checkpoint that the training goes on from.
        data_record: Checksums of the data of a resumed training.
        validation: None on other processes than the main one, and for `--val_cases 0`.
    """

    options: TrainOptions
    folder: Path
    accelerator: Accelerator
    study: Study
    model: GenerativeModel
    trainer: Trainer
    cache: Path
    resumed: Path | None
    data_record: dict[str, Any]
    validation: Validation | None

    @classmethod
    def open(cls, options: TrainOptions, folder: Path) -> Session:
        """Check options, data and checkpoint, and build the model.

        Raises:
            UserError: Something of them is wrong.
        """
        options = replace(options, data=recognise_labels(options.data))
        run = options.run
        MODELS[options.generator.model].check_options(options)
        if not run.continue_train:
            runs.check_new_run(folder, run.overwrite)
        accelerator = make_accelerator(options.optim.precision, run.gpu_ids)
        with accelerator.main_process_first():
            options = ensure_cohort_clip(options, folder)
        torch.manual_seed(run.seed)

        cache = cache_folder(options.data, folder)
        keep_checks = run.continue_train or options.data.cache_dir or cache.is_dir()
        study = open_study(options, cache if keep_checks else None)
        options = fix_labels(options, study)
        resumed = checkpoint.find(folder / "latest") if run.continue_train else None
        data_record: dict[str, Any] = {}
        if resumed:
            study = restore_study(options, study, resumed)
            with accelerator.main_process_first():  # the other processes find its checksums
                data_record = check_unchanged(options, study, resumed, cache)
        else:
            options = fix_text_texture(options, study)
        warn_constant_text(options, study)
        model = start_model(options, study, resumed is not None)
        trainer = make_trainer(options, model, accelerator, len(study.training_cases))
        if resumed:
            trainer.load(resumed)
        validation = None
        if accelerator.is_main_process and run.val_cases:
            validation = make_validation(options, study, model, trainer)
        return cls(
            options,
            folder,
            accelerator,
            study,
            model,
            trainer,
            cache,
            resumed,
            data_record,
            validation,
        )

    def begin(self, notices: Sequence[Notice]) -> tuple[Study, PatchDataset, Monitor]:
        """Write the run's folder and prepare its volumes; then steps can be taken.

        Args:
            notices: Warnings that the training page shows.

        Returns:
            The study, whose phrases are weighed now, the patches, and what logs and saves.
        """
        options, folder, study, cache = self.options, self.folder, self.study, self.cache
        data_record = self.data_record
        if self.accelerator.is_main_process:
            open_folder(folder, options, study)
            study.encoder.attach_cache(folder)
            if not self.resumed:
                with memory_advice(options):
                    check_latents(options, study, self.model, self.accelerator.device, folder)
            data_record = data_record or record_data(options, study, cache)
        self.accelerator.wait_for_everyone()
        with self.accelerator.main_process_first():  # the other processes find its prepared volumes
            dataset = make_dataset(options, study, self.model, study.training_cases, cache)
        save_body_shape(folder, options, dataset.volumes)
        if not self.resumed:
            study = weigh_by_relevance(options, study, cache)
        evidence = find_evidence(options, study, self.resumed, cache)
        records = {"data": data_record, EVIDENCE: evidence}
        monitor = make_monitor(
            options, study, self.trainer, folder, self.validation, records, notices
        )
        return study, dataset, monitor
