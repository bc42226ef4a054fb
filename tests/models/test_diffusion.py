"""The denoiser, guidance, windows inside each step, edits, and what a training step learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.base_model import MODELS, BatchText, Condition
from models.diffusion_model import DiffusionModel, mask_text
from models.networks.condition import organ_region
from models.networks.denoiser import MEAN_LEVEL, Denoiser
from models.sliding_window import SlidingWindow
from options.diffusion_options import (
    FLOW_SAMPLERS,
    SCHEDULE_SAMPLERS,
    DiffusionOptions,
    SamplingOptions,
)
from options.parser import from_dict, to_dict
from options.train_options import TrainOptions
from tests.networks import LABELS, SIZE, WIDTH, batch, nothing_known, text, train_options, wake
from util.cli import UserError
from util.seeding import noise_box, noise_key, uniform_draws

TARGETS = ("flow", "v", "noise")


def options(**changes: Any) -> TrainOptions:
    """A tiny diffusion model; changes of `diffusion` by its own flags."""
    own = {k: v for k, v in changes.items() if hasattr(DiffusionOptions(), k)}
    rest = {k: v for k, v in changes.items() if k not in own}
    plain = train_options(noise_channels=1, **rest)
    return replace(plain, diffusion=replace(DiffusionOptions(time_width=8), **own))


def model(**changes: Any) -> DiffusionModel:
    torch.manual_seed(0)
    return DiffusionModel(options(**changes), LABELS, WIDTH)


# --- draws ----------------------------------------------------------------------------------------


def test_draws_follow_from_the_sample_and_are_uniform() -> None:
    keys = torch.stack([noise_key(0, f"sample {number}") for number in range(4000)])
    noise = noise_box(keys, 1, (0, 0, 0), (4, 4, 4))
    drawn = uniform_draws(keys, 4)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert torch.allclose(drawn.mean(0), torch.full((4,), 0.5), atol=0.02)
    assert torch.allclose(drawn.var(0), torch.full((4,), 1 / 12), atol=0.005)
    together = torch.corrcoef(
        torch.cat([drawn, noise.flatten(1)[:, :4], noise.flatten(1).mean(1, keepdim=True)], 1).T
    )
    assert (together - torch.eye(9))[:4].abs().max() < 0.07


def test_text_is_kept_or_left_out_a_prompt_each() -> None:
    said = text(3)
    kept = mask_text(said, torch.tensor([True, False, True]))
    empty = nothing_known(1)
    assert (
        torch.equal(kept.pooled[1], empty.pooled[0])
        and not kept.valid[1].any()
        and not kept.tokens[1].any()
    )
    assert torch.equal(kept.tokens[0], said.tokens[0]) and torch.equal(kept.valid[2], said.valid[2])


# --- network --------------------------------------------------------------------------------------


def denoise(
    network: nn.Module,
    said: Any,
    level: float = 0.0,
    size: tuple[int, int, int] = SIZE,
    **changed: Any,
) -> Tensor:
    made = batch(options(), len(said.pooled), size) | changed
    found: Tensor = network(
        made["noise"], torch.full((len(said.pooled),), level), made["mask"], made["coords"], said
    )
    return found


@pytest.mark.parametrize(
    "changes",
    [
        *({"fusion": f} for f in ("none", "affine", "additive", "attention", "both", "concat")),
        {"skip": False},
        {"coord_channels": False},
        {"checkpoint_activations": True},
        {"fusion_at": "bottleneck"},
        {"n_downsample_global": 2},
        {"norm": "rms"},
    ],
)
def test_every_choice_denoises_and_no_parameter_is_without_use(changes: dict[str, Any]) -> None:
    built = model(**changes)
    network = wake(built.raw["G"])
    everywhere = torch.zeros(2, LABELS, 16, 8, 8)
    everywhere[:, 1] = 1  # no background, so that text may tell
    made = denoise(network, text(), size=(16, 8, 8), mask=everywhere)
    assert made.shape == (2, 1, 16, 8, 8) and made.dtype == torch.float32
    mean = denoise(network, text(), level=MEAN_LEVEL, size=(16, 8, 8), mask=everywhere)
    (made.square().mean() + mean.square().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_noise_level_and_text_tell() -> None:
    network = wake(model(text_region="everywhere").raw["G"])
    plain = denoise(network, text())
    assert (denoise(network, text(), level=3.0) - plain).abs().mean() > 1e-3
    assert (denoise(network, text(seed=1)) - plain).abs().mean() > 1e-4


def test_text_tells_only_near_labels() -> None:
    network = wake(model(fusion="both").raw["G"])
    mask = torch.zeros(2, LABELS, 16, 8, 8)
    mask[:, 0] = 1
    mask[:, :2, :4] = torch.tensor([0.0, 1.0])[None, :, None, None, None]
    change = (
        denoise(network, text(seed=1), size=(16, 8, 8), mask=mask)
        - denoise(network, text(), size=(16, 8, 8), mask=mask)
    ).abs()
    assert change[:, :, :4].mean() > 1e-4 and change[:, :, 10:].max() < 1e-6


def test_padding_tokens_do_not_tell() -> None:
    network, said = wake(model(fusion="both").raw["G"]), text(1, tokens=2)
    said = replace(said, valid=torch.ones(1, 2, dtype=torch.bool))
    longer = replace(
        said,
        tokens=torch.cat([said.tokens, torch.ones(1, 2, WIDTH)], 1),
        valid=torch.cat([said.valid, torch.zeros(1, 2, dtype=torch.bool)], 1),
    )
    torch.testing.assert_close(denoise(network, longer), denoise(network, said))


# --- model ----------------------------------------------------------------------------------------


def generate(built: DiffusionModel, tiler: Any = None, said: Any = None) -> Tensor:
    made = batch(options(), 1, (16, 16, 16))
    with torch.no_grad():
        return built.generate(
            Condition(made["mask"], made["coords"], said or text(1, seed=3)),
            made["noise"],
            tiler or SlidingWindow((), built.size_multiple),
        )


def test_models_are_registered_and_need_fitting_settings() -> None:
    assert {"diffusion", "latent_diffusion"} <= set(MODELS.names())
    built = model()
    assert built.sampling == SamplingOptions("dpmpp_2m", 15, 0.2, 1.0, 1.0)
    built.set_sampling(SamplingOptions(sampling_steps=7))
    assert built.sampling.sampling_steps == 7 and built.sampling.sampler == "dpmpp_2m"
    for wrong, flag in (
        ({"sampler": "ddim"}, "--sampler is ddim"),
        ({"sampling_steps": 1001}, "--sampling_steps is 1001"),
        ({"guidance_mask": 2.0}, "--guidance_mask is 2"),
    ):
        with pytest.raises(UserError, match=flag):
            built.set_sampling(SamplingOptions(**wrong))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--text_dropout 0"):
        model(text_dropout=0.0).set_sampling(SamplingOptions(guidance=2.0))


@pytest.mark.parametrize(
    ("target", "sampler"), [("flow", "euler"), ("v", "ddim"), ("noise", "ddim")]
)
def test_runs_of_version_0_1_keep_their_sampling(target: str, sampler: str) -> None:
    old = model(preconditioning="residual", diffusion_target=target, zero_snr=target != "noise")
    assert old.sampling == SamplingOptions(sampler, 30, 0.2, 1.0, 1.0)
    new = model(diffusion_target=target, zero_snr=target != "noise")
    assert new.sampling.sampler == "dpmpp_2m"


def test_the_gan_takes_no_sampling() -> None:
    gan = MODELS["pix2pixhd"](train_options(), LABELS, WIDTH, training=False)
    gan.set_sampling(SamplingOptions())
    with pytest.raises(UserError, match="--guidance"):
        gan.set_sampling(SamplingOptions(guidance=2.0))


def test_options_of_older_runs_are_still_read() -> None:
    stored = to_dict(TrainOptions())
    del stored["diffusion"], stored["sampling"]
    found = from_dict(TrainOptions, stored, "options.json")
    assert found == replace(TrainOptions(), diffusion=DiffusionOptions(preconditioning="residual"))


@pytest.mark.parametrize("target", TARGETS)
def test_generation_is_a_function_of_its_noise(target: str) -> None:
    built = model(diffusion_target=target, zero_snr=target != "noise")
    wake(built.raw["G"])
    for sampler in FLOW_SAMPLERS if target == "flow" else SCHEDULE_SAMPLERS:
        built.set_sampling(SamplingOptions(sampler=sampler, sampling_steps=4))
        one, two = generate(built), generate(built)
        assert torch.equal(one, two) and one.shape == (1, 1, 16, 16, 16) and one.abs().max() <= 1
        assert torch.isfinite(one).all()


def test_guidance_exaggerates_what_text_does() -> None:
    built = model(mask_dropout=0.1)
    wake(built.raw["G"])
    made, level, said = batch(options(), 1), torch.zeros(1), text(1, seed=3)
    told, silent, blind = (
        built.raw["G"](made["noise"], level, made["mask"] * mask, made["coords"], words)
        for mask, words in ((1, said), (1, nothing_known(1)), (0, nothing_known(1)))
    )
    for text_scale, mask_scale in ((1.0, 1.0), (3.0, 1.0), (0.0, 1.0), (2.0, 1.5)):
        built.set_sampling(SamplingOptions(guidance=text_scale, guidance_mask=mask_scale))
        tiles = Condition(made["mask"], made["coords"], said)
        found = built._guided(made["noise"], level, tiles)
        expected = blind + mask_scale * (silent - blind) + text_scale * (told - silent)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preconditioning", ["edm", "residual"])
def test_windows_inside_each_step_agree_with_the_whole(preconditioning: str) -> None:
    """Tiles that are each sampled to the end, and blended then, differ more, unless their parts
    differ little anyway.
    """
    built = model(n_blocks_global=0, preconditioning=preconditioning)
    made = batch(options(), 1, (48, 8, 8))
    built.set_sampling(SamplingOptions(sampling_steps=5))
    window = SlidingWindow((16, 8, 8), built.size_multiple)

    def whole(tiler: Any, mask: Tensor, coords: Tensor, noise: Tensor) -> Tensor:
        return built.generate(Condition(mask, coords, text(1, seed=3)), noise, tiler)

    def apart(*tiles: Tensor) -> Tensor:
        mask, coords, noise = tiles
        one = SlidingWindow((), built.size_multiple)
        return torch.cat(
            [
                whole(one, mask[i : i + 1], coords[i : i + 1], noise[i : i + 1])
                for i in range(len(mask))
            ]
        )

    mask, coords, noise = made["mask"], made["coords"], made["noise"]
    with torch.no_grad():
        at_once, tiled = (
            whole(w, mask, coords, noise) for w in (SlidingWindow((), built.size_multiple), window)
        )
        blended = window(apart, mask, coords, noise)
    assert (at_once - tiled).abs().mean() < 0.03 * at_once.std()
    if preconditioning == "residual":
        assert (at_once - tiled).abs().mean() < 0.7 * (at_once - blended).abs().mean()


def test_the_mean_ignores_the_noise_and_is_part_of_the_volume() -> None:
    built = model()
    built.set_sampling(SamplingOptions(sampling_steps=4))
    network = wake(built.raw["G"])
    tiler = SlidingWindow((), built.size_multiple)
    made = batch(options(), 1)
    condition = Condition(made["mask"], made["coords"], text(1))
    with torch.no_grad():
        mean, again = (built._mean(made[name], condition, tiler) for name in ("noise", "image"))
        alone = built._predict_mean(network, condition)
        seeds = torch.randn(16, 1, *SIZE, generator=torch.Generator().manual_seed(0))
        drawn = torch.cat(
            [built.generate(condition, seed[None], tiler) for seed in seeds.unbind(0)]
        )
    assert torch.equal(mean, again) and torch.equal(mean, alone) and mean.std() > 0.01
    assert (drawn[0] - drawn[1]).abs().mean() > 1e-3
    assert torch.corrcoef(torch.stack([drawn.mean(0).flatten(), mean.flatten()]))[0, 1] > 0.9
    old = model(preconditioning="residual")
    assert not old._mean(made["noise"], condition, tiler).any()


@pytest.mark.parametrize("preconditioning", ["edm", "residual"])
def test_the_loss_of_a_batch_is_the_mean_of_its_samples(preconditioning: str) -> None:
    """So accumulation and several processes train the same network."""
    built = model(preconditioning=preconditioning)
    wake(built.raw["G"])
    made, said = batch(options(), 4), text(4)
    made["mask"][1, 0], made["mask"][1, 1:] = 1, 0  # no organ in this patch

    def loss(rows: slice) -> Tensor:
        embedding = replace(
            said, tokens=said.tokens[rows], valid=said.valid[rows], pooled=said.pooled[rows]
        )
        part = {name: value[rows] for name, value in made.items()}
        return next(built.training_step(part, BatchText(embedding, embedding))).loss

    apart = torch.stack([loss(slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(loss(slice(0, 4)), apart.mean())


@pytest.mark.parametrize("preconditioning", ["edm", "residual"])
def test_an_edit_without_change_gives_the_scan_and_one_with_change_does_not(
    preconditioning: str,
) -> None:
    built = model(text_region="everywhere", preconditioning=preconditioning)
    built.set_sampling(SamplingOptions(sampling_steps=10))
    wake(built.raw["G"])
    tiler = SlidingWindow((), built.size_multiple)
    made = batch(options(), 1)
    image = made["image"]
    own = Condition(made["mask"], made["coords"], text(1))
    other = replace(own, text=text(1, seed=9))
    with torch.no_grad():
        change = {}
        for strength in (1.0, 0.4, 0.05):
            state = built.invert(image, own, strength, tiler)
            again = built.regenerate(state, own, strength, tiler)
            edited = built.regenerate(state, other, strength, tiler)
            assert (again - image).abs().mean() < 0.01
            change[strength] = float((edited - image).abs().mean())
            assert change[strength] > 3 * (again - image).abs().mean()
    assert change[0.05] < 0.6 * change[0.4] and change[0.4] < change[1.0]
    built = model(diffusion_target="v")
    built.set_sampling(SamplingOptions(sampler="ddpm"))
    with pytest.raises(UserError, match="--sampler ddpm"):
        built.check_inversion()


def test_training_finds_an_effect_of_text() -> None:
    """Images of one value that the text decides; after a few steps sampling gives it back."""
    torch.manual_seed(0)
    built = DiffusionModel(
        options(ngf=8, text_region="everywhere", fusion="additive"), LABELS, WIDTH
    )
    network, draw = built.raw["G"], torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)

    def of(sign: Tensor) -> Any:
        return replace(text(len(sign), tokens=1), pooled=sign[:, None].expand(-1, WIDTH).clone())

    for _ in range(60):
        made = batch(options(), 4, seed=int(torch.randint(10**6, (1,), generator=draw)))
        sign = torch.randint(2, (4,), generator=draw).float() * 2 - 1
        noise = 0.03 * torch.randn(made["image"].shape, generator=draw)
        images = made | {"image": 0.2 * sign[:, None, None, None, None] + noise}
        for _, loss, _ in built.training_step(images, BatchText(of(sign), of(sign))):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    built.set_sampling(SamplingOptions(sampling_steps=10))
    effect = (
        generate(built, said=of(torch.ones(1))) - generate(built, said=of(-torch.ones(1)))
    ).mean()
    assert float(effect) == pytest.approx(0.4, rel=0.4)


def test_expand_gives_every_tile_the_prompt() -> None:
    said = text(1).expand(3)
    assert said.tokens.shape[0] == 3 and torch.equal(said.pooled[0], said.pooled[2])


def test_denoiser_is_small_change_of_scale_when_new() -> None:
    """The text's units and the time's scales are silent at first, so the first step sees a plain
    U-Net.
    """
    torch.manual_seed(0)
    network = Denoiser(options().generator, 1, LABELS, WIDTH, 8)
    torch.testing.assert_close(denoise(network, text()), denoise(network, nothing_known()))
    torch.testing.assert_close(denoise(network, text(), level=2.0), denoise(network, text()))


def test_text_changes_the_mean_linearly_in_the_place_and_no_other_noise_level() -> None:
    torch.manual_seed(0)
    network = Denoiser(options().generator, 1, LABELS, WIDTH, 8).eval()
    assert network.effect is not None
    said, twice = text(), replace(text(), pooled=2 * text().pooled)
    plain, noisy = (denoise(network, said, level=level) for level in (MEAN_LEVEL, 2.0))
    nn.init.normal_(network.effect.weights.weight)
    changed, doubled = (denoise(network, t, level=MEAN_LEVEL) for t in (said, twice))
    torch.testing.assert_close(doubled - plain, 2 * (changed - plain), rtol=1e-3, atol=1e-4)
    organs = organ_region(batch(options(), 2)["mask"], None).bool()
    assert (changed - plain)[organs].any() and not (changed - plain)[~organs].any()
    assert torch.equal(denoise(network, said, level=2.0), noisy)


def test_without_text_linear_or_in_latents_the_mean_has_no_place_effect() -> None:
    generator = options().generator
    assert Denoiser(replace(generator, text_linear=False), 1, LABELS, WIDTH, 8).effect is None
    assert Denoiser(generator, 4, LABELS, WIDTH, 8).effect is None
