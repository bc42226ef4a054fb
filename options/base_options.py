"""Flags that training, testing and the tools share: the cohort and the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from options.parser import check_window, flag, path_flag
from util.cli import UserError
from util.modality import MODALITIES, UNIT_WINDOW, Terms

BODY_LABELS = ("auto", "masks", "none")  # of --body_label, beside a number
MAX_LABEL = 255
HU_WINDOW = (-1000.0, 400.0)
PERCENTILES = (0.5, 99.5)
LUNG_LABELS = (1, 2)
AIRWAY_LABEL = 3
NO_LABEL = -1  # the airways' in masks that are not of a chest


@dataclass(frozen=True)
class DataOptions:
    """The cohort and how it is read."""

    # Values in the runs of earlier versions, which store no such option.
    ABSENT: ClassVar[Mapping[str, Any]] = {"body_label": "none"}

    dataroot: str = path_flag(
        "",
        "Folder with img/, gtlung/, clinical.csv or .xlsx; optionally splits.json, prompts.csv.",
        kind="folder",
    )
    mask_folder: str = flag("gtlung", "Folder of the masks in --dataroot.")
    modality: str = flag(
        "ct",
        "What the volumes are: ct (chest CT in HU), mr (intensities by percentiles of each scan), "
        "or custom (intensities by --intensity_window). For mr and custom, units are arbitrary "
        "(a.u., 0 to 1000), and regions are the mask's labels.",
        choices=tuple(MODALITIES),
    )
    intensity_window: tuple[float, float] | None = flag(
        None,
        "With --modality mr or custom: intensities of the files at 0 and 1000 a.u. (none: by "
        "--percentiles).",
    )
    percentiles: tuple[float, float] = flag(
        PERCENTILES,
        "With --modality mr: percentiles of each scan at 0 and 1000 a.u.; voxels of its lowest "
        "value do not count.",
        low=0,
        high=100,
    )
    template: str = path_flag(
        "auto",
        "Wording of rows: aiib23, osic, lesions, auto (COLUMN is VALUE), or a YAML file.",
        kind="name or path",
    )
    paraphrases: str = path_flag(
        "",
        "File of other words for the template's phrases (YAML), which training learns as well.",
        kind="file",
    )
    key_column: str = flag("File Name", "Table column that names the scan.")
    patient_column: str = flag(
        "", "Table column that names the patient; all scans of a patient go into one split."
    )
    text_columns: tuple[str, ...] = flag(
        (),
        "Column to use in the text although nearly every row has another value, such as a "
        "finding in words. May be repeated.",
    )
    lung_labels: tuple[int, ...] = flag(
        LUNG_LABELS,
        "Mask labels of the left and the right lung, or the single one of both, which tells no "
        "sides; with --modality mr or custom the labels that effects are measured in (1,2: all "
        "labels).",
    )
    airway_label: int = flag(AIRWAY_LABEL, "Mask label of the airways.")
    lesion_labels: tuple[int, ...] = flag(
        (),
        "Mask labels of lesions in the lungs (empty: none): regions of the lungs then hold them, "
        "and effects are told by lesion, too.",
        low=1,
        high=MAX_LABEL,
    )
    body_label: str = flag(
        "auto",
        "Mask label of the body: masks (the label around the lungs, if there is one), auto (the "
        "same, and the next free label where masks hold lungs and airways only, found in the "
        "scans), a number (masks without it get it from their scans), or none.",
    )
    max_labels: int = flag(
        160,
        "Most different labels that a mask may hold; one with more is taken for a picture.",
        low=2,
        high=255,
    )
    spacing: tuple[float, float, float] | None = flag(
        None,
        "Voxel size in mm to resample to (linear for CT, nearest for masks).",
        low=0.05,
        high=50,
    )
    hu_window: tuple[float, float] = flag(
        HU_WINDOW, "HU mapped linearly to -1 and 1.", low=-4000, high=8000
    )
    strict: bool = flag(False, "Treat scans without a row, and rows without a scan, as an error.")
    cache_dir: str = flag(
        "", "Folder of prepared volumes, shared by runs (empty: volumes.cache beside the run)."
    )
    cache_compression: str = flag(
        "none",
        "Keep prepared volumes in compressed chunks, clipped to --hu_window: at most a third of "
        "the space, and some milliseconds more for each patch (needs the package blosc2).",
        choices=("none", "blosc2"),
    )
    cache_gb: float = flag(
        500.0,
        "Most GB of prepared volumes; the longest unused are removed first, never those that a "
        "running training uses (0: no limit).",
        low=0,
    )
    splits: str = path_flag(
        "", "File of splits to use instead of the dataroot's splits.json.", kind="file"
    )
    permute: tuple[str, ...] = flag(
        (),
        "Permute this column over the training cases by --seed, for the null distribution. May "
        "be repeated; the columns are then permuted together.",
    )
    resample: bool = flag(
        False, "Draw the training patients with replacement (bootstrap) by --seed."
    )
    fold: str = flag("", "Leave out fold k of K training patients, given as k/K (cross-fitting).")

    def __post_init__(self) -> None:
        """Settle what follows from the modality.

        Raises:
            UserError: A flag does not go with the modality, or the ends of a range are exchanged.
        """
        check_window("hu_window", self.hu_window)
        self._check_lesions()
        if MODALITIES[self.modality].is_ct:
            if self.intensity_window is not None:
                raise UserError(
                    "--intensity_window is given with --modality ct, whose volumes are in HU. Use "
                    "--hu_window, or --modality custom."
                )
            return
        self._check_intensities()
        for name, default, settled in (
            ("hu_window", HU_WINDOW, UNIT_WINDOW),
            ("airway_label", AIRWAY_LABEL, NO_LABEL),
        ):
            if getattr(self, name) not in (default, settled):
                raise UserError(
                    f"--{name} is given with --modality {self.modality}; it is for chest CT. Leave "
                    "it out (--intensity_window sets the range of other intensities)."
                )
            object.__setattr__(self, name, settled)
        if self.body_label not in BODY_LABELS:
            raise UserError(
                f"--body_label is {self.body_label} with --modality {self.modality}; bodies are "
                "found in chest CT. Leave it out."
            )
        object.__setattr__(self, "body_label", "none")

    def _check_lesions(self) -> None:
        if taken := sorted(set(self.lesion_labels) & {*self.lung_labels, self.airway_label}):
            raise UserError(
                f"--lesion_labels holds {taken[0]}, the label of a lung or of the airways "
                "(--lung_labels, --airway_label). Lesions need labels of their own."
            )
        if self.lesion_labels and not MODALITIES[self.modality].is_ct:
            raise UserError(
                f"--lesion_labels is given with --modality {self.modality}, whose regions are the "
                "mask's labels anyway. Leave it out."
            )

    def _check_intensities(self) -> None:
        window = self.intensity_window
        if window is None and self.modality == "custom":
            raise UserError(
                "--modality custom needs --intensity_window LOW,HIGH: the intensities of the files "
                "that become 0 and 1000 a.u. For scans without a common scale use --modality mr."
            )
        if window is not None:
            check_window("intensity_window", window)
        check_window("percentiles", self.percentiles)

    @property
    def terms(self) -> Terms:
        """Unit and words of the modality, and names of the labels that are known."""
        terms, lungs = MODALITIES[self.modality], self.lung_labels
        if not terms.is_ct:
            return terms
        names = dict(terms.label_names)
        if (lungs, self.airway_label) != (LUNG_LABELS, AIRWAY_LABEL):
            sides = ["left lung", "right lung"] if len(lungs) == 2 else ["lung"] * len(lungs)
            names = {0: "background", **dict(zip(lungs, sides, strict=True))}
            names[self.airway_label] = "airway"
        for label in self.lesion_labels:
            names[label] = f"lesion (label {label})"
        if self.body_number is not None:
            names[self.body_number] = "body"
        return terms if names == terms.label_names else replace(terms, label_names=names)

    def for_other_cohort(self, dataroot: str) -> DataOptions:
        """Return how another cohort is read: with its own splits, and its rows as they are."""
        return replace(self, dataroot=dataroot, splits="", permute=(), resample=False, fold="")

    @property
    def whole_lung_labels(self) -> tuple[int, ...]:
        """Labels of the lungs and of the lesions in them; of other modalities, the targets."""
        return *self.lung_labels, *self.lesion_labels

    @property
    def chest_labels(self) -> set[int]:
        """Labels of the background, the lungs with their lesions, and the airways."""
        return {0, self.airway_label, *self.whole_lung_labels}

    @property
    def body_number(self) -> int | None:
        """Label of the body; None for `none`, and for `auto` and `masks`: a cohort decides.

        Raises:
            UserError: `body_label` is neither of these words nor a free label.
        """
        text = self.body_label
        if text in BODY_LABELS:
            return None
        taken = self.chest_labels
        number = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 0
        if number in taken or number > MAX_LABEL:
            raise UserError(
                f"--body_label is {text!r}; it must be auto, masks, none, or a label from 1 to "
                f"{MAX_LABEL} that is not that of a lung, a lesion or the airways."
            )
        return number

    def body_channel(self, n_labels: int) -> int | None:
        """Return the channel of the body in a one-hot mask of K labels; None without a body.

        The labels of a run begin with the background and end with the body.
        """
        return None if self.body_number is None else n_labels - 1


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
        "Probability that a patch is centred on a lung voxel; others lie anywhere.",
        low=0,
        high=1,
        old_names=("lung_share",),
    )
    augment: float = flag(
        0.0,
        "Probability that a patch is rotated by up to 5 degrees and scaled by up to 5 %; "
        "patches are never flipped. Interpolation smooths noise a little.",
        low=0,
        high=1,
    )
    num_workers: int | None = flag(
        None,
        "Worker processes that load patches, per training process (none: by the cores; 0 on a CPU, "
        "where a patch costs little beside its step).",
        low=0,
        high=64,
    )


@dataclass(frozen=True)
class TextOptions:
    """How text becomes an embedding."""

    text_encoder: str = path_flag(
        "cohort",
        "cohort (a small CLIP pre-trained on the training cases, beside the run), a folder of a "
        "transformers CLIP or BERT model, hub:ORG/MODEL to download one, medclip:FILE, or table "
        "(no language).",
        kind="name or path",
    )
    text_revision: str = flag("", "Revision of a hub model.")
    text_mode: str = flag(
        "phrases",
        "phrases: one token per phrase; sentence: the encoder's own tokens.",
        choices=("phrases", "sentence"),
    )
    medclip_bert: str = path_flag(
        "",
        "Folder of MedCLIP's BERT (config, tokenizer), if it is not beside the checkpoint.",
        kind="folder",
    )
    whitening: float = flag(
        0.25,
        "Exponent of the whitening of phrase embeddings (0: none, 0.5: the training phrases "
        "spread equally in all directions).",
        low=0,
        high=0.5,
    )
    number_tokens: bool = flag(
        True,
        "Embed a number's size beside the text of its phrase, so that unseen values lie "
        "between seen ones.",
    )
    text_relevance: bool = flag(
        True,
        "Down-weight columns with little evidence in the training scans, and scans whose rows "
        "explain little.",
    )
    attribute_dropout: float = flag(
        0.0, "Probability of leaving out each phrase in training.", low=0, high=0.9
    )
    shuffle_phrases: bool = flag(
        False, "Shuffle the order of phrases in training (matters for sentences only)."
    )
