"""Rules between flags of train.py, which need neither data nor a model."""

from __future__ import annotations

import pytest

import train
from options.autoencoder_options import AutoencoderCommand
from options.checks import check_patch_size, check_sampling
from options.clip_options import ClipCommand
from options.diffusion_options import DiffusionOptions, SamplingOptions
from options.evaluate_options import EvaluateOptions
from options.parser import parse
from options.train_options import TrainOptions
from options.utility_options import UtilityCommand
from util.cli import UserError

LATENT = ("--model", "latent_diffusion")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--patch_size", "20,16,8"), r"--patch_size is 20,16,8; .*--patch_size 16,16,8"),
        (("--hu_window", "400,-1000"), "--hu_window is 400,-1000"),
        (("--lung_labels", "1,1"), "--lung_labels is 1,1; .*name it alone"),
        (("--lung_labels", "0,1"), "--lung_labels is 0,1; labels are above 0"),
        (("--percentiles", "1,99"), "--percentiles is given with --modality ct"),
        (
            ("--modality=custom", "--intensity_window=0,9", "--percentiles=1,99"),
            "--percentiles is given with a window",
        ),
        (("--lung_labels", "2,3"), "--airway_label is 3, which --lung_labels names as a lung"),
        (("--batch_size", "3", "--gradient_accumulation", "2"), "--batch_size is 3"),
        (("--niter", "0", "--niter_decay", "0"), "are all 0"),
        (("--load_global", "run"), "--n_local_enhancers 1"),
        (("--val_effect", "AGE=1,2", "--val_effect", "SEX=F,M"), "--val_effect is given 2 times"),
        (
            (
                "--lambda_gan=0",
                "--lambda_feat=0",
                "--lambda_mean=0",
                "--lambda_patch=0",
                "--lambda_quantile=0",
            ),
            "All loss weights",
        ),
        (("--lambda_perceptual", "1", "--perceptual_weights", "no.pth"), "--perceptual_weights is"),
        (("--model", "diffusion", "--n_local_enhancers", "1"), "--n_local_enhancers is 1"),
        (("--model", "diffusion", "--diffusion_target", "noise"), "--no-zero_snr"),
        (("--model", "diffusion", "--autoencoder", "file"), "--model latent_diffusion"),
        (("--paraphrases", "p.yaml", "--text_mode", "sentence"), "Use --text_mode phrases"),
        (LATENT, "--autoencoder is not given"),
        ((*LATENT, "--autoencoder", "no.pt"), "--autoencoder is no.pt, which is not there"),
        (("--model", "diffusion", "--sampler", "ddim"), "--sampler is ddim.*euler, heun"),
        (("--model", "diffusion", "--guidance_mask", "2"), "--mask_dropout 0"),
    ],
)
def test_flags_that_do_not_fit(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train.read_options(["--patch_size", "16,16,8", *words])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (AutoencoderCommand, ("a.safetensors", "--hu_window=400,-1000")),
        (ClipCommand, ("--hu_window=400,400",)),
        (EvaluateOptions, ("--hu_window=400,-1000",)),
        (UtilityCommand, ("--lung_window=-600,-1000",)),
        (ClipCommand, ("--modality=mr", "--percentiles=99,1")),
        (ClipCommand, ("--modality=custom", "--intensity_window=20,0")),
    ],
)
def test_ranges_run_upwards_in_every_command(command: type, words: tuple[str, ...]) -> None:
    name, _, value = words[-1].partition("=")
    with pytest.raises(UserError, match=f"{name} is {value}; the first must be below"):
        parse(command, "", words)


def test_defaults_fit() -> None:
    assert train.read_options([]) == TrainOptions()
    check_patch_size(TrainOptions(), factor=2)
    check_sampling(DiffusionOptions(), SamplingOptions())


def test_patches_of_latents_must_be_larger() -> None:
    options = train.read_options(["--patch_size", "16,16,8"])
    with pytest.raises(UserError, match=r"autoencoder that makes 4 voxels one .*32,32,32"):
        check_patch_size(options, factor=4)
