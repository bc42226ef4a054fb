"""Flags that training, testing and the tools share: the cohort and the text."""

from __future__ import annotations

from dataclasses import dataclass

from options.parser import flag


@dataclass(frozen=True)
class DataOptions:
    """What the cohort is and how it is read."""

    dataroot: str = flag(
        "",
        "Folder with img/, gtlung/, clinical.csv or .xlsx, and optionally splits.json, prompts.csv.",
    )
    template: str = flag(
        "auto", "How rows become text: aiib23, osic, auto (COLUMN is VALUE), or a YAML file."
    )
    key_column: str = flag("File Name", "Table column that names the scan.")
    patient_column: str = flag(
        "", "Table column that names the patient, so that one patient never is in two splits."
    )
    lung_labels: tuple[int, ...] = flag((1, 2), "Mask labels of the left and the right lung.")
    airway_label: int = flag(3, "Mask label of the airways.")
    max_labels: int = flag(
        16, "More different mask labels than this are an error.", low=2, high=255
    )
    spacing: tuple[float, float, float] | None = flag(
        None,
        "Voxel size in mm to resample to (linear for CT, nearest for masks).",
        low=0.05,
        high=50,
    )
    hu_window: tuple[float, float] = flag(
        (-1000.0, 400.0), "HU mapped linearly to -1 and 1.", low=-4000, high=8000
    )
    strict: bool = flag(False, "Make scans without a row, and rows without a scan, an error.")
    cache_dir: str = flag("", "Where prepared volumes are kept (empty: cache/ beside the run).")
    splits: str = flag("", "File of splits to obey instead of the dataroot's splits.json.")
    permute: tuple[str, ...] = flag(
        (),
        "Shuffle this column over the training cases by --seed, as a negative control; may be "
        "repeated: the columns then move together.",
    )
    resample: bool = flag(
        False, "Draw the training patients with replacement (bootstrap) by --seed."
    )
    fold: str = flag("", "Leave fold k of K training patients out, as k/K (cross-fitting).")


@dataclass(frozen=True)
class PatchOptions:
    """How patches are cut from volumes."""

    patch_size: tuple[int, int, int] = flag(
        (128, 128, 64),
        "Voxels of a training patch along the left-right, back-front and foot-head axes.",
        low=4,
    )
    lung_patch_prob: float = flag(
        0.8,
        "Share of patches centred on a lung voxel; the others lie anywhere.",
        low=0,
        high=1,
        old_names=("lung_share",),
    )
    augment: float = flag(
        0.0,
        "Share of patches turned and scaled by at most 5 degrees and 5 %; never flipped. It "
        "smooths noise a little.",
        low=0,
        high=1,
    )
    num_workers: int = flag(
        0, "Processes that prepare patches, beside each training process.", low=0, high=64
    )


@dataclass(frozen=True)
class TextOptions:
    """How text becomes an embedding."""

    text_encoder: str = flag(
        "cohort",
        "cohort (a small CLIP pre-trained on the training cases, beside the run), a folder or hub "
        "id of a transformers CLIP or BERT model, medclip:FILE, or table (no language).",
    )
    text_revision: str = flag("", "Revision of a hub model.")
    text_mode: str = flag(
        "phrases",
        "One token a phrase, or the encoder's own tokens.",
        choices=("phrases", "sentence"),
    )
    medclip_bert: str = flag(
        "", "Folder of MedCLIP's BERT (config, tokenizer), if it is not beside the checkpoint."
    )
    whitening: float = flag(
        0.25,
        "How far the spread of the training phrases is evened out (0: not, 0.5: equal in all "
        "directions).",
        low=0,
        high=0.5,
    )
    number_tokens: bool = flag(
        True,
        "Give a number's size beside the text of its phrase, so that unseen values lie between "
        "seen ones.",
    )
    text_relevance: bool = flag(
        True,
        "Weigh columns by how far the training scans determine what they do, and scans by how much "
        "their rows tell.",
    )
    attribute_dropout: float = flag(
        0.0, "Probability with which training leaves out each phrase.", low=0, high=0.9
    )
    shuffle_phrases: bool = flag(
        False, "Shuffle the order of phrases in training (matters for sentences only)."
    )
