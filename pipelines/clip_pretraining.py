"""Pre-training of a small CLIP on the volumes and prompts of a cohort."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data.cache import load_case
from data.cohort import Case, Cohort
from data.load_cohort import check_lungs, load_cohort
from data.text.prompts import Prompt, cohort_prompts, load_template
from data.volumes import one_hot, to_unit
from models.text.clip import (
    VolumeEncoder,
    contrastive_loss,
    make_text_model,
    make_tokenizer,
    retrieval,
)
from options.clip_options import ClipCommand, ClipOptions
from util import phrasing as wording
from util.cli import UserError, is_main_process
from util.files import claim_folder, file_fingerprint, read_json
from util.records import same_settings

log = logging.getLogger(__name__)

RECORD = "clip.json"

SENTENCE_EVERY = 4  # steps

VERSION = 1  # of the method: a folder of another version is not used again


@dataclass(frozen=True)
class Pairs:
    """Volumes `image` `(N,1,X,Y,Z)`, `mask` `(N,K,X,Y,Z)`, and their prompts."""

    image: Tensor
    mask: Tensor
    prompts: Sequence[Prompt]


def load_pairs(
    cases: Sequence[Case], prompts: dict[str, Prompt], cohort: Cohort, options: ClipCommand
) -> Pairs:
    """The cases of which something is known, averaged down to `--clip_size` on reading."""
    images, masks, known = [], [], [c for c in cases if prompts[c.id]]
    for case in tqdm(known, desc="Reading volumes", disable=not is_main_process()):
        image, mask = load_case(case, None)
        if image is None:
            raise UserError(f"Case {case.id} has no scan; CLIP learns from scans and prompts.")
        unit = torch.from_numpy(to_unit(image.array, options.data.hu_window))[None].float()
        masks.append(
            F.adaptive_avg_pool3d(
                one_hot(mask.array, cohort.labels, case.mask), options.clip.clip_size
            )
        )
        images.append(F.adaptive_avg_pool3d(unit, options.clip.clip_size))
    if len(images) < 2:
        raise UserError(
            f"Only {len(images)} cases of {cohort.root} have a prompt; CLIP needs two at least."
        )
    return Pairs(torch.stack(images), torch.stack(masks), [prompts[c.id] for c in known])


def pick(prompt: Prompt, rng: np.random.Generator) -> list[str]:
    """The phrases of a prompt for one step: all, or as often some of them, in any order."""
    count = len(prompt) if rng.random() < 0.5 else rng.integers(1, len(prompt) + 1)
    return [prompt[i].text for i in rng.permutation(len(prompt))[:count]]


class Clip(nn.Module):
    """Both encoders and the temperature."""

    def __init__(self, texts: Sequence[str], labels: int) -> None:
        super().__init__()
        longest = len(make_tokenizer(texts, 10**6)(max(texts, key=len))["input_ids"])
        self.tokenizer = make_tokenizer(texts, max(128, 2 * longest))
        self.text = make_text_model(self.tokenizer)
        self.volume = VolumeEncoder(labels)
        self.scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings `(N,C)`."""
        batch = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.scale.device)
        return self.text(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).text_embeds

    def sums(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """Embeddings `(N,C)` as `--text_mode phrases` makes them: the sum over phrases, each
        embedded by itself.
        """
        bare = [[wording.strip_phrase(p) for p in prompt] for prompt in prompts]
        distinct = sorted({p for prompt in bare for p in prompt})
        holds = torch.tensor(
            [[prompt.count(p) for p in distinct] for prompt in bare], dtype=torch.float32
        )
        return holds.to(self.scale.device) @ self.texts(distinct)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Runs on one thread: the tensors are so small that a second one costs more than it brings (up
    to ten times).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit(clip: Clip, pairs: Pairs, options: ClipOptions, device: torch.device) -> float:
    """Trains in place; the mean loss of the last tenth of the steps."""
    rng = np.random.default_rng([options.seed, 1])
    optimiser = torch.optim.AdamW(clip.parameters(), lr=options.clip_lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.clip_lr, total_steps=options.clip_steps, pct_start=0.1
    )
    size, losses = min(options.clip_batch, len(pairs.prompts)), []
    for step in (
        bar := tqdm(range(options.clip_steps), desc="Training CLIP", disable=not is_main_process())
    ):
        chosen = rng.permutation(len(pairs.prompts))[:size].tolist()
        prompts = [pick(pairs.prompts[i], rng) for i in chosen]
        # Mostly as phrases, which is what the generator sees by default, and sometimes as
        # sentences.
        texts = (
            clip.sums(prompts)
            if step % SENTENCE_EVERY
            else clip.texts([wording.join_phrases(p) for p in prompts])
        )
        volumes = clip.volume(pairs.image[chosen].to(device), pairs.mask[chosen].to(device))
        loss = contrastive_loss(volumes, texts, clip.scale.clamp(max=np.log(100.0)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.2f}")
        if not np.isfinite(losses[-1]):
            raise UserError(f"The loss is {losses[-1]} at step {step}; lower --clip_lr.")
    return float(np.mean(losses[-max(1, options.clip_steps // 10) :]))


@torch.no_grad()
def judge(clip: Clip, pairs: Pairs, device: torch.device) -> dict[str, float]:
    """Retrieval among these pairs by their full prompts."""
    clip.eval()
    texts = clip.sums([prompt.texts for prompt in pairs.prompts])
    volumes = torch.cat(
        [
            clip.volume(i[None].to(device), m[None].to(device))
            for i, m in zip(pairs.image, pairs.mask, strict=True)
        ]
    )
    return retrieval(volumes, texts)


def record_of(options: ClipCommand, cohort: Cohort, prompts: dict[str, Prompt]) -> dict[str, Any]:
    """What a CLIP was made from: settings, and a hash of cases, prompts and files."""
    made = hashlib.sha256(json.dumps([cohort.splits, cohort.labels]).encode())
    for case in cohort.cases:
        paths = [path for path in (case.image, case.mask) if path]
        files = [[path.name, *file_fingerprint(path)[1:]] for path in paths]
        made.update(json.dumps([case.id, prompts[case.id].texts, files]).encode())
    settings = {k: v for k, v in asdict(options.clip).items() if k not in ("out", "overwrite")}
    own = {
        **settings,
        "hu_window": options.data.hu_window,
        "cohort": made.hexdigest(),
        "version": VERSION,
    }
    return json.loads(json.dumps(own))


def is_finished(out: Path, record: dict[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds this very CLIP; another one, or other files, raise `UserError`
    without `--overwrite`.
    """
    if out.is_dir() and overwrite and not (out / RECORD).is_file():
        return False  # its other files stay
    if not claim_folder(out, [RECORD], overwrite=True):
        return False
    try:
        made_from = read_json(out / RECORD)["made_from"]
    except (UserError, KeyError, TypeError):
        made_from = None  # damaged
    return same_settings(made_from, record, out, overwrite)


def save(clip: Clip, out: Path, report: dict[str, Any]) -> None:
    """Writes all files beside the folder first; the record comes last, so that a folder with a
    record is whole.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = Path(folder)
        clip.text.cpu().save_pretrained(made)
        clip.tokenizer.save_pretrained(made)
        weights = {**clip.volume.state_dict(), "scale": clip.scale.detach()}
        save_file(
            {k: v.cpu().contiguous() for k, v in weights.items()},
            made / "volume_encoder.safetensors",
        )
        (made / RECORD).write_text(json.dumps(report, indent=2) + "\n")
        for path in sorted(made.iterdir(), key=lambda p: p.name == RECORD):
            path.replace(out / path.name)


def pretrain(options: ClipCommand) -> Path:
    """Trains and saves the CLIP that the options describe, or finds it done.

    Returns:
        The folder, for `--text_encoder`.

    Raises:
        UserError: A bad cohort, too few prompts, or a folder that holds something else.
    """
    if not options.clip.out:
        raise UserError("--out is not given; it is the folder for the CLIP.")
    out, device = (
        Path(options.clip.out),
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    cohort = load_cohort(options.data, seed=options.clip.seed)
    check_lungs(cohort, options.data)
    template = load_template(
        options.data.template, cohort.columns, options.data.key_column, options.data.patient_column
    )
    prompts = cohort_prompts(cohort, template)
    record = record_of(options, cohort, prompts)
    if is_finished(out, record, options.clip.overwrite):
        log.info("%s holds this CLIP already.", out)
        return out
    train = load_pairs(cohort.split("train"), prompts, cohort, options)
    torch.manual_seed(options.clip.seed)
    clip = Clip([wording.join_phrases(prompt.texts) for prompt in train.prompts], len(cohort.labels)).to(
        device
    )
    with one_thread():
        loss = fit(clip, train, options.clip, device)
    held = {c for name in ("val", "test") for c in cohort.splits.get(name, ())} - set(
        cohort.splits["train"]
    )
    others = [c for c in cohort.cases if c.id in held and prompts[c.id]]
    if len(others) < 2:
        log.warning("No held-out pairs (val, test): the retrieval below is of the training pairs.")
    pairs = train if len(others) < 2 else load_pairs(others, prompts, cohort, options)
    found: dict[str, Any] = {
        "of": "training" if pairs is train else "held-out",
        **judge(clip, pairs, device),
    }
    save(clip, out, {"made_from": record, "loss": loss, "retrieval": found})
    percent = [100 * found[k] for k in ("top1", "chance_top1", "top5", "chance_top5")]
    log.info(
        "Retrieval among %d %s pairs: top-1 %.0f %% (chance %.0f %%), top-5 %.0f %% (chance %.0f "
        "%%).",
        found["pairs"],
        found["of"],
        *percent,
    )
    log.info("Saved; use it with --text_encoder %s", out)
    return out
