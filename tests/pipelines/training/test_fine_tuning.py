"""Trainings that start from another run: what is known stays, what is new has no effect yet."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.volumes import load_volume, write_like
from models.base_model import MODELS
from models.diffusion_model import embed_labels
from models.networks.denoiser import MEAN_LEVEL
from models.pix2pixhd_model import Pix2PixHDModel
from models.text.base_encoder import TextEmbedding
from models.text.table_encoder import TableEncoder
from options.base_options import DataOptions
from options.parser import parse
from options.train_options import PRESETS, TrainOptions
from pipelines.training.fine_tuning import SourceRun, freeze
from tests.commands import TINY, TrainedRun, command, refused
from train import read_options
from util.cli import UserError
from util.training import checkpoint
from util.volume_inputs import mask_input

OLD = [["SEX is F", "AGE is 60"], ["SEX is M", "AGE is 50"], ["SEX is M", "AGE is 70"]]
NEW = [["SEX is M", "DRUG is x"], ["AGE is 55", "DRUG is y"], ["A is b"]]


def embed(encoder: TableEncoder, prompt: list[str]) -> TextEmbedding:
    return encoder.encode([prompt])


def test_a_table_encoder_knows_the_phrases_of_both_runs() -> None:
    old, new = TableEncoder(), TableEncoder()
    old.fit(OLD)
    new.fit(NEW)
    matrix = new.adopt(*old.state())
    assert matrix is not None and matrix.shape == (old.width, new.width)
    assert set(old.phrases) | {"DRUG is x", "DRUG is y", "A is b"} == set(new.phrases)
    for prompt in (["SEX is M", "AGE is 63"], ["AGE is 41"]):
        torch.testing.assert_close(embed(new, prompt).tokens @ matrix.T, embed(old, prompt).tokens)
    assert not (embed(new, ["DRUG is x"]).tokens @ matrix.T).any()


def tiny_options(*words: str) -> TrainOptions:
    flags = [*TINY, "--name", "x", "--dataroot", ".", "--noise_channels", "2", *words]
    return parse(TrainOptions, "", flags, PRESETS)


@pytest.fixture
def source(trained_run: TrainedRun) -> SourceRun:
    return SourceRun.load(trained_run.name, str(trained_run.checkpoints))


def test_volumes_of_known_labels_and_text_stay(source: SourceRun) -> None:
    """A label more, in another order, and phrases more."""
    old_encoder, encoder = TableEncoder(), TableEncoder()
    old_encoder.load_state({}, source.state["encoder_values"])
    encoder.fit(NEW)
    text = source.adopt_text(encoder)
    assert text is not None and encoder.width > old_encoder.width
    options = source.options
    old_labels = source.state["labels"]
    labels = [0, 9, *old_labels[1:]]
    old = Pix2PixHDModel(options, len(old_labels), old_encoder.width)
    old.raw["G"].load_state_dict(load_file(source.checkpoint_dir / "average.safetensors"))
    old.raw["D"].load_state_dict(load_file(source.checkpoint_dir / "D.safetensors"))
    new = Pix2PixHDModel(options, len(labels), encoder.width)
    source.load_weights(new, labels, text)
    random = torch.Generator().manual_seed(0)
    channels = torch.randint(len(old_labels), (1, 16, 16, 8), generator=random)
    mask = torch.nn.functional.one_hot(channels, len(old_labels)).movedim(-1, 1).float()
    moved = torch.cat([mask[:, :1], torch.zeros_like(mask[:, :1]), mask[:, 1:]], 1)
    coords = torch.zeros(1, 3, 16, 16, 8)
    noise = torch.randn(1, old.noise_channels, 16, 16, 8, generator=random)
    prompt = ["Patient age: 61.", "SMOKING HISTORY is Ex smoker"]
    with torch.no_grad():
        before = old.raw["G"](mask, coords, noise, embed(old_encoder, prompt))
        after = new.raw["G"](moved, coords, noise, embed(encoder, prompt))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
        more = new.raw["G"](moved, coords, noise, embed(encoder, [*prompt, "DRUG is x"]))
        torch.testing.assert_close(more, before, rtol=0, atol=2e-2)  # attention divides by length
        pooled = embed(old_encoder, prompt).pooled, embed(encoder, prompt).pooled
        condition = [torch.cat([m, coords], 1) for m in (mask, moved)]
        (one, _), (two, _) = (
            model.raw["D"](before, c, p)
            for model, c, p in zip((old, new), condition, pooled, strict=True)
        )
        torch.testing.assert_close(two[0].scores, one[0].scores, rtol=0, atol=1e-4)


def random_source(folder: Path, options: TrainOptions, labels: list[int]) -> SourceRun:
    """An untrained run with random weights, also where training starts with zeros."""
    torch.manual_seed(0)
    networks = MODELS[options.generator.model](options, len(labels), 6).raw
    with torch.no_grad():
        for network in networks.values():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    parts = {name: network.state_dict() for name, network in networks.items()}
    state = {"step": 0, "parts": sorted(parts), "labels": labels}
    checkpoint.save(folder, parts, state)
    return SourceRun(folder, options, folder, state)


def with_body(options: TrainOptions, body: int) -> TrainOptions:
    data = dataclasses.replace(options.data, body_label=str(body))
    return dataclasses.replace(options, data=data)


MANY = [0, *range(1, 20)]


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("pix2pixhd", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]),  # 4 becomes a lesion, the body 5
        ("pix2pixhd", [0, *range(1, 16)], [0, *range(1, 14), 15]),
        ("pix2pixhd", MANY, [0, 20, *MANY[1:]]),
        ("diffusion", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]),
        ("diffusion", MANY, [0, 20, *MANY[1:]]),
    ],
)
def test_known_labels_keep_their_weights(
    model: str, old: list[int], new: list[int], tmp_path: Path
) -> None:
    """Few and many labels, in all networks, and a body whose number is another one."""
    words = ("--model", model, "--precision", "fp32")
    options = with_body(tiny_options(*words), old[-1])
    source = random_source(tmp_path / "source", options, old)
    before = MODELS[model](options, len(old), 6)
    for name, network in before.raw.items():
        network.load_state_dict(load_file(tmp_path / "source" / f"{name}.safetensors"))
    after = MODELS[model](with_body(options, new[-1]), len(new), 6)
    source.load_weights(after, new, torch.eye(6))

    known = [n for n in old[:-1] if n in new]  # the body is last in both
    random = torch.Generator().manual_seed(1)
    drawn = torch.randint(len(known) + 1, (1, 16, 16, 8), generator=random)
    old_places = torch.tensor([*(old.index(n) for n in known), len(old) - 1], dtype=torch.uint8)
    new_places = torch.tensor([*(new.index(n) for n in known), len(new) - 1], dtype=torch.uint8)
    tokens = torch.randn(1, 2, 6, generator=random)
    text = TextEmbedding(tokens, torch.ones(1, 2, dtype=torch.bool), tokens.sum(1))
    volume = torch.randn(1, 1, 16, 16, 8, generator=random)
    coords = torch.randn(1, 3, 16, 16, 8, generator=random)
    outputs = []
    for built, places, labels in ((before, old_places, old), (after, new_places, new)):
        mask = mask_input(places[drawn], len(labels))
        generator = built.raw["G"].eval()
        with torch.no_grad():
            if model == "diffusion":
                level = torch.tensor([MEAN_LEVEL])
                mask = embed_labels(generator, mask)
                outputs.append([generator(volume, level, mask, coords, text)])
                continue
            noise = volume.expand(-1, built.noise_channels, -1, -1, -1)
            generated = generator(mask, coords, noise, text)
            judged, _ = built.raw["D"](volume, torch.cat([mask, coords], 1), text.pooled)
            outputs.append([generated, *(scale.scores for scale in judged)])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)


def test_another_encoder_leaves_text_without_effect(source: SourceRun) -> None:
    labels = source.state["labels"]
    new = Pix2PixHDModel(source.options, len(labels), 10)
    source.load_weights(new, labels, None)
    mask = torch.zeros(1, len(labels), 16, 16, 8)
    mask[:, 1] = 1
    coords, noise = torch.zeros(1, 3, 16, 16, 8), torch.zeros(1, new.noise_channels, 16, 16, 8)
    tokens = torch.randn(2, 1, 1, 10)
    valid = torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        volumes = [new.raw["G"](mask, coords, noise, TextEmbedding(t, valid, t[0])) for t in tokens]
    torch.testing.assert_close(volumes[0], volumes[1], rtol=0, atol=1e-6)


def test_parts_stay_frozen_and_other_networks_are_refused(source: SourceRun) -> None:
    labels = source.state["labels"]
    model = Pix2PixHDModel(source.options, len(labels), 10)
    freeze(model, ["anatomy"])
    trained = {p for group in model.param_groups()["G"] for p in group["params"]}
    assert trained and trained == set(model.named_parts()["text"])
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(model, ["text"])
    with pytest.raises(UserError, match="has the parts anatomy, text, encoder"):
        freeze(model, ["head"])
    generator = dataclasses.replace(source.options.generator, ngf=8)
    wider = Pix2PixHDModel(
        dataclasses.replace(source.options, generator=generator), len(labels), 10
    )
    with pytest.raises(UserError, match=r"--init_from tiny.*another architecture.*Leave flags"):
        source.load_weights(wider, labels, None)


def test_a_run_starts_from_another(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    """With a label and a value that the source does not know, its anatomy frozen."""
    for path in (cohort_copy / "gtlung").iterdir():
        labels = load_volume(path).array
        labels[:3, :3, :3] = 7
        write_like(path, labels, path, np.uint8)
    table = cohort_copy / "clinical.csv"
    table.write_text(table.read_text().replace("Ex smoker", "Vaping"))
    flags = ("--dataroot", cohort_copy, "--checkpoints_dir", trained_run.checkpoints)
    words = ("--name", f"tuned_{tmp_path.parent.name}", "--val_cases", "0", "--max_steps", "2")
    source = ("--init_from", trained_run.name, "--freeze", "anatomy")
    refused(command("train.py", *flags, *words, *source[2:]), "--freeze", "--init_from")
    missing = ("--init_from", "none")
    refused(command("train.py", *flags, *words, *missing), "--init_from none", "there is no run")
    done = command("train.py", *flags, *words, *source)
    assert done.code == 0, done.text
    folder = trained_run.checkpoints / words[1]
    options = json.loads((folder / "options.json").read_text())
    assert options["generator"]["ngf"] == 4 and options["patch"]["patch_size"] == [16, 16, 8]
    state = json.loads((folder / "latest" / "state.json").read_text())
    assert 7 in state["labels"]
    phrases = state["encoder_values"]["phrases"]
    assert {"SMOKING HISTORY is Vaping", "SMOKING HISTORY is Ex smoker"} <= set(phrases)
    old, new = (
        load_file(run / "latest" / "average.safetensors") for run in (trained_run.folder, folder)
    )
    same = [k for k in old if old[k].shape == new[k].shape and torch.equal(old[k], new[k])]
    changed = [k for k in old if k not in same]
    assert same and changed
    done = command(
        "train.py", "--name", words[1], *flags[2:], "--continue_train", "--max_steps", "4"
    )
    assert done.code == 0, done.text


def test_flags_of_the_source_that_do_not_go_with_new_ones_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = TrainOptions(data=DataOptions(airway_label=9))
    source = SimpleNamespace(start_options=lambda: start)
    monkeypatch.setattr(SourceRun, "load", lambda name, folder: source)
    words = ["--dataroot", "heads", "--name", "x", "--init_from", "run1", "--modality", "mr"]
    with pytest.raises(UserError, match=r"--airway_label .* are those of --init_from run1"):
        read_options(words)
