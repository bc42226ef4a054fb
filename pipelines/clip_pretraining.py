"""Pre-training of a small CLIP on the volumes and prompts of a cohort."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerFast

from data.cache import load_case
from data.cohort import Case, Cohort
from data.load_cohort import check_lungs, load_cohort
from data.text.prompts import Prompt, cohort_prompts, load_template
from data.text.synonyms import Paraphrases, load_paraphrases
from data.volumes import label_channels, to_unit
from models.text.clip import (
    VolumeEncoder,
    contrastive_loss,
    make_text_model,
    make_tokenizer,
    retrieval,
)
from options.clip_options import ClipCommand, ClipOptions
from util.cli import UserError, counted, file_problem
from util.files import claim_folder, file_fingerprint, file_sha256, sync, write_json
from util.locks import locked_folder
from util.phrasing import join_phrases, strip_phrase
from util.progress import progress_bar
from util.records import read_record, same_settings
from util.training.devices import make_device
from util.training.schedule import one_cycle

log = logging.getLogger(__name__)

RECORD = "clip.json"
VOLUME_FILE = "volume_encoder.safetensors"  # the image side
VERSION = 1  # of the method; a CLIP of another version is trained again
SENTENCE_EVERY = 4  # steps
MIN_PAIRS = 2
MIN_TEXT_LENGTH = 128  # tokens that the text model takes at least
MAX_SCALE = 100.0  # largest inverse temperature (Radford et al. 2021, section 2.5)


@dataclass(frozen=True)
class Pairs:
    """Volumes with their prompts.

    Attributes:
        image: `(N, 1, X, Y, Z)` in [-1, 1].
        mask: `(N, K, X, Y, Z)`, shares of labels.
        prompts: N prompts, none of them empty.
    """

    image: Tensor
    mask: Tensor
    prompts: Sequence[Prompt]


def load_pairs(
    cases: Sequence[Case], prompts: Mapping[str, Prompt], cohort: Cohort, options: ClipCommand
) -> Pairs:
    """Read the cases that have a prompt, averaged down to `clip_size`.

    Raises:
        UserError: A case without a scan, or fewer than `MIN_PAIRS` cases.
    """
    images: list[Tensor] = []
    masks: list[Tensor] = []
    described = [case for case in cases if prompts[case.id]]
    for case in progress_bar(described, "Reading volumes", "volume"):
        image, mask = load_case(case, None)
        if image is None:
            raise UserError(f"Case {case.id} has no scan; CLIP learns from scans and prompts.")
        unit = torch.from_numpy(to_unit(image.array, options.data.hu_window))[None].float()
        channels = label_channels(mask.array, cohort.labels, case.mask)
        size = options.clip.clip_size
        images.append(F.adaptive_avg_pool3d(unit, size))
        # One label at a time: all of them as one-hot channels of a whole scan may take gigabytes.
        shares = [
            F.adaptive_avg_pool3d((channels == k)[None].float(), size)
            for k in range(len(cohort.labels))
        ]
        masks.append(torch.cat(shares))
    if len(images) < MIN_PAIRS:
        raise UserError(
            f"{cohort.root} has {counted(len(images), 'case')} with a prompt; CLIP needs at least "
            f"{MIN_PAIRS}. Add a clinical table or prompts.csv, or train with --text_encoder table."
        )
    return Pairs(torch.stack(images), torch.stack(masks), [prompts[c.id] for c in described])


def draw_phrases(
    prompt: Prompt, rng: np.random.Generator, paraphrases: Paraphrases | None = None
) -> list[str]:
    """Draw the phrases of a prompt for one step, in random order: in half of the steps all.

    With paraphrases, half of the phrases that have some are said in other words.
    """
    count = len(prompt) if rng.random() < 0.5 else rng.integers(1, len(prompt) + 1)
    texts = [prompt[i].text for i in rng.permutation(len(prompt))[:count]]
    if paraphrases is None or not paraphrases.wordings:
        return texts
    drawn = []
    for text in texts:
        others = paraphrases.alternatives(text)
        drawn.append(str(rng.choice(others)) if others and rng.random() < 0.5 else text)
    return drawn


class Clip(nn.Module):
    """Volume encoder, text encoder and temperature.

    Args:
        tokenizer: Tokenizer of the text encoder.
        text: The text encoder.
        labels: K, channels of the one-hot mask.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, text: CLIPTextModelWithProjection, labels: int
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.text = text
        self.volume = VolumeEncoder(labels)
        # Logarithm of the inverse temperature.
        self.scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))

    @classmethod
    def for_texts(cls, texts: Sequence[str], labels: int) -> Clip:
        """Return an untrained CLIP whose tokenizer knows the training prompts."""
        unlimited = make_tokenizer(texts, 10**6)
        longest = len(unlimited(max(texts, key=len))["input_ids"])
        tokenizer = make_tokenizer(texts, max(MIN_TEXT_LENGTH, 2 * longest))
        return cls(tokenizer, make_text_model(tokenizer), labels)

    @classmethod
    def load(cls, folder: Path, labels: int) -> Clip:
        """Read a CLIP that `save_clip` wrote, text side and image side.

        Args:
            labels: K, channels of the one-hot mask.

        Raises:
            UserError: The image side was not saved, or a file is damaged or of other labels.
        """
        path = folder / VOLUME_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no image encoder ({VOLUME_FILE}), so that scans cannot be compared. "
                "A CLIP that is trained with this version keeps it (scripts/pretrain_clip.py)."
            )
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            clip = cls(tokenizer, CLIPTextModelWithProjection.from_pretrained(folder), labels)
            weights = load_file(path)
            clip.scale.data.copy_(weights.pop("scale"))
            clip.volume.load_state_dict(weights)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise UserError(
                f"The CLIP in {folder} cannot be read ({str(error)[:200]}). Train it again with "
                "scripts/pretrain_clip.py --overwrite."
            ) from None
        return clip

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings `(N, C)` of N texts."""
        batch = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.scale.device)
        output = self.text(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return output.text_embeds

    def embed_phrases(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """Return embeddings `(N, C)` of N prompts: the sum over phrases, as in mode `phrases`."""
        stripped = [[strip_phrase(phrase) for phrase in prompt] for prompt in prompts]
        distinct = sorted({phrase for prompt in stripped for phrase in prompt})
        counts = [[prompt.count(phrase) for phrase in distinct] for prompt in stripped]
        weights = torch.tensor(counts, dtype=torch.float32).to(self.scale.device)
        return weights @ self.embed_texts(distinct)


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Limit torch to one thread: for tensors this small, a second one slows it up to ten times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit_clip(
    clip: Clip,
    pairs: Pairs,
    options: ClipOptions,
    device: torch.device,
    paraphrases: Paraphrases | None = None,
) -> float:
    """Train in place; return the mean loss of the last tenth of the steps.

    Raises:
        UserError: The loss is not finite.
    """
    rng = np.random.default_rng([options.seed, 1])
    optimizer = torch.optim.AdamW(clip.parameters(), lr=options.clip_lr, weight_decay=0.05)
    schedule = one_cycle(optimizer, options.clip_lr, options.clip_steps)
    batch_size = min(options.clip_batch, len(pairs.prompts))
    losses: list[float] = []
    steps = progress_bar(range(options.clip_steps), "Training CLIP", "step")
    for step in steps:
        chosen = rng.permutation(len(pairs.prompts))[:batch_size].tolist()
        prompts = [draw_phrases(pairs.prompts[i], rng, paraphrases) for i in chosen]
        # Phrases are the default of the generator's text encoder; some steps use sentences.
        if step % SENTENCE_EVERY:
            texts = clip.embed_phrases(prompts)
        else:
            texts = clip.embed_texts([join_phrases(prompt) for prompt in prompts])
        volumes = clip.volume(pairs.image[chosen].to(device), pairs.mask[chosen].to(device))
        loss = contrastive_loss(volumes, texts, clip.scale.clamp(max=np.log(MAX_SCALE)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        steps.set_postfix(loss=f"{np.mean(losses[-20:]):.2f}")
        if not np.isfinite(losses[-1]):
            raise UserError(f"The loss is {losses[-1]} at step {step}; lower --clip_lr.")
    return float(np.mean(losses[-max(1, options.clip_steps // 10) :]))


@torch.no_grad()
def evaluate_retrieval(clip: Clip, pairs: Pairs, device: torch.device) -> dict[str, float]:
    """Return the accuracy of retrieval among pairs by their complete prompts."""
    clip.eval()
    texts = clip.embed_phrases([prompt.texts for prompt in pairs.prompts])
    volumes = [
        clip.volume(image[None].to(device), mask[None].to(device))
        for image, mask in zip(pairs.image, pairs.mask, strict=True)
    ]
    return retrieval(torch.cat(volumes), texts)


def clip_settings(
    options: ClipCommand, cohort: Cohort, prompts: Mapping[str, Prompt]
) -> dict[str, Any]:
    """Return everything that determines a CLIP: options, and a hash of cases, prompts and files."""
    digest = hashlib.sha256(json.dumps([cohort.splits, cohort.labels]).encode())
    for case in cohort.cases:
        paths = [path for path in (case.image, case.mask) if path]
        files = [[path.name, *file_fingerprint(path)[1:]] for path in paths]
        scale = [] if case.scale is None else [case.scale.key]
        digest.update(json.dumps([case.id, prompts[case.id].texts, files, *scale]).encode())
    settings = asdict(options.clip)
    del settings["out"]
    del settings["overwrite"]
    settings["hu_window"] = options.data.hu_window
    if options.data.paraphrases:
        settings["paraphrases"] = file_sha256(Path(options.data.paraphrases))
    settings["cohort"] = digest.hexdigest()
    settings["version"] = VERSION
    return json.loads(json.dumps(settings))  # with lists for tuples, as in the file


def is_trained(out: Path, settings: Mapping[str, Any], overwrite: bool) -> bool:
    """Return whether a folder holds the CLIP of these settings.

    Raises:
        UserError: The folder holds another CLIP or other files, without `overwrite`.
    """
    if out.is_dir() and overwrite and not (out / RECORD).is_file():
        return False  # its other files stay
    if not claim_folder(out, [RECORD], overwrite=True):
        return False
    consequence = "It is trained again" if overwrite else "Use --overwrite to train it again"
    record = read_record(out / RECORD, {"made_from": dict[str, Any]}, consequence)
    if record is None and not overwrite:
        raise UserError(f"{out / RECORD} is damaged. Use --overwrite to train this CLIP again.")
    return record is not None and same_settings(record["made_from"], settings, out, overwrite)


def save_clip(clip: Clip, out: Path, record: Mapping[str, Any]) -> None:
    """Write the CLIP's files; the record comes last, so that a folder with one is complete.

    Raises:
        UserError: The disk is full or cannot be written; an earlier CLIP is untouched.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        folder = Path(name)
        try:
            _write_clip(clip, folder, record)
        except Exception as error:
            if problem := file_problem(error):
                raise UserError(
                    f"{out} could not be written: {problem}, and run the command again. An earlier "
                    "CLIP there is untouched."
                ) from None
            raise
        (out / RECORD).unlink(missing_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD):
            path.replace(out / path.name)


def _write_clip(clip: Clip, folder: Path, record: Mapping[str, Any]) -> None:
    clip.text.cpu().save_pretrained(folder)
    clip.tokenizer.save_pretrained(folder)
    weights = {**clip.volume.state_dict(), "scale": clip.scale.detach()}
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in weights.items()},
        folder / VOLUME_FILE,
    )
    write_json(folder / RECORD, record)
    for path in folder.iterdir():
        sync(path)


def pretrain_clip(options: ClipCommand, gpu_ids: str = "") -> Path:
    """Train and save the CLIP that the options describe, unless the folder holds it already.

    Args:
        gpu_ids: Where to train, as `--gpu_ids` of train.py.

    Returns:
        The folder, for `--text_encoder`.

    Raises:
        UserError: A bad cohort, too few prompts, or a folder that holds something else.
    """
    with locked_folder(Path(options.clip.out), "--out"):
        return _pretrain(options, gpu_ids)


def _pretrain(options: ClipCommand, gpu_ids: str) -> Path:
    """Pre-train in a folder that no other process uses."""
    out = Path(options.clip.out)
    device = make_device(gpu_ids)
    data = options.data
    cohort = load_cohort(data, seed=options.clip.seed)
    check_lungs(cohort, data)
    template = load_template(data.template, cohort.columns, data.key_column, data.patient_column)
    prompts = cohort_prompts(cohort, template)
    settings = clip_settings(options, cohort, prompts)
    if is_trained(out, settings, options.clip.overwrite):
        log.info("%s holds this CLIP already.", out)
        return out
    paraphrases = load_paraphrases(data.paraphrases, template, cohort.columns)
    pairs = load_pairs(cohort.split("train"), prompts, cohort, options)
    torch.manual_seed(options.clip.seed)
    sentences = [prompt.sentence for prompt in pairs.prompts]
    for prompt in pairs.prompts if paraphrases.wordings else ():
        words = [(paraphrases.alternatives(text) or [text])[-1] for text in prompt.texts]
        sentences.append(join_phrases(words))
    words = [text for texts in paraphrases.wordings.values() for text in texts]
    clip = Clip.for_texts([*sentences, *words], len(cohort.labels)).to(device)
    with single_thread():
        loss = fit_clip(clip, pairs, options.clip, device, paraphrases)
    held_out = [case for case in held_out_cases(cohort) if prompts[case.id]]
    if len(held_out) < MIN_PAIRS:
        log.warning("No held-out pairs (val, test): the retrieval below is of the training pairs.")
    else:
        pairs = load_pairs(held_out, prompts, cohort, options)
    accuracy = evaluate_retrieval(clip, pairs, device)
    split = "training" if len(held_out) < MIN_PAIRS else "held-out"
    record = {"made_from": settings, "loss": loss, "retrieval": {"of": split, **accuracy}}
    save_clip(clip, out, record)
    log.info(
        "Retrieval among %d %s pairs: top-1 %.0f %% (chance %.0f %%), top-5 %.0f %% (chance %.0f "
        "%%).",
        accuracy["pairs"],
        split,
        *(100 * accuracy[key] for key in ("top1", "chance_top1", "top5", "chance_top5")),
    )
    log.info("Saved; use it with --text_encoder %s", out)
    return out


def held_out_cases(cohort: Cohort) -> list[Case]:
    """Return the validation and test cases that are not training cases, in the cohort's order."""
    held_out = {*cohort.splits.get("val", ()), *cohort.splits.get("test", ())}
    held_out -= set(cohort.splits["train"])
    return [case for case in cohort.cases if case.id in held_out]
