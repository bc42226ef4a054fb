"""Flags that training, testing and the tools share: the cohort and the text."""

from __future__ import annotations

from dataclasses import dataclass

from options.parser import flag


@dataclass(frozen=True)
class DataOptions:
    """What the cohort is and how it is read."""

    dataroot: str = flag("", "Folder with img/, gtlung/, clinical.csv or .xlsx, and optionally splits.json, prompts.csv.")
    template: str = flag("auto", "How rows become text: aiib23, osic, auto (COLUMN is VALUE), or a YAML file.")
    key_column: str = flag("File Name", "Table column that names the scan.")
    patient_column: str = flag("", "Table column that names the patient, so that one patient never is in two splits.")
    lung_labels: tuple[int, ...] = flag((1, 2), "Mask labels of the left and the right lung.")
    airway_label: int = flag(3, "Mask label of the airways.")
    max_labels: int = flag(16, "More different mask labels than this are an error.", low=2, high=255)
    spacing: tuple[float, float, float] | None = flag(
        None, "Voxel size in mm to resample to (linear for CT, nearest for masks).", low=0.05, high=50)
    hu_window: tuple[float, float] = flag((-1000.0, 400.0), "HU mapped linearly to -1 and 1.", low=-4000, high=8000)
    strict: bool = flag(False, "Make scans without a row, and rows without a scan, an error.")
    cache_dir: str = flag("", "Where prepared volumes are kept (empty: cache/ beside the run).")


@dataclass(frozen=True)
class TextOptions:
    """How text becomes an embedding."""

    text_encoder: str = flag(
        "table", "Folder or hub id of a transformers CLIP or BERT model, medclip:FILE, or table (no language).")
    text_revision: str = flag("", "Revision of a hub model.")
    text_mode: str = flag("phrases", "One token a phrase, or the encoder's own tokens.", choices=("phrases", "sentence"))
    number_tokens: bool = flag(
        True, "Give a number's size beside the text of its phrase, so that unseen values lie between seen ones.")
    attribute_dropout: float = flag(0.1, "Probability with which training leaves out each phrase.", low=0, high=0.9)
    shuffle_phrases: bool = flag(False, "Shuffle the order of phrases in training (matters for sentences only).")
