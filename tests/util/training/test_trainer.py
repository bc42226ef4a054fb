"""The training loop on a tiny GAN: schedule, averaging, accumulation, stopping, and going on to the
last bit.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from models.base_model import BatchText
from models.pix2pixhd_model import Pix2PixHDModel
from tests.networks import LABELS, WIDTH, batch, text, train_options
from util.cli import UserError
from util.training import checkpoint
from util.training.devices import make_accelerator, make_device, resolve_precision
from util.training.stopping import STOPPING
from util.training.trainer import RunStopped, Trainer, TrainerConfig

Feed = Iterator[dict[str, Any]]


def make(
    precision: str = "fp32", settings: dict[str, Any] | None = None, **changes: Any
) -> Trainer:
    """A trainer of eight steps with a fresh model of seed 0."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    model = Pix2PixHDModel(train_options(**changes), LABELS, WIDTH)
    values: dict[str, Any] = {
        "steps": 8,
        "constant_steps": 4,
        "steps_per_epoch": 2,
        **(settings or {}),
    }
    return Trainer(model, make_accelerator(precision, "-1"), TrainerConfig(**values))


def batches(trainer: Trainer, parts: int = 1) -> Feed:
    """The batches from the trainer's step on; a step's samples are the same in however many parts
    they come.
    """
    assert isinstance(trainer.model, Pix2PixHDModel)
    for step in itertools.count(trainer.steps_done):
        made, said, other = (
            batch(trainer.model.options, 2, seed=step, draws=trainer.model.draws),
            text(seed=step),
            text(seed=step + 99),
        )
        for i in range(parts):
            cut = slice(i * 2 // parts, (i + 1) * 2 // parts)
            yield {
                **{k: v[cut] for k, v in made.items()},
                "texts": [
                    type(t)(t.tokens[cut], t.valid[cut], t.pooled[cut]) for t in (said, other)
                ],
            }


def fit(
    trainer: Trainer,
    until: int | None = None,
    after: Callable[[int], None] = lambda step: None,
    feed: Feed | None = None,
) -> int | None:
    """The loop of train.py; returns the signal that ended it."""
    feed = feed or batches(trainer, trainer.config.gradient_accumulation)
    for parts in trainer.iterate(feed, until):
        trainer.step([(part, BatchText(*part["texts"])) for part in parts])
        after(trainer.steps_done)
    return trainer.stop_signal


def weights(trainer: Trainer, name: str = "G") -> dict[str, Tensor]:
    return {k: v.clone() for k, v in trainer.model.raw[name].state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative L2 distance."""
    a, b = (torch.cat([v.flatten() for v in state.values()]) for state in (one, other))
    return float((a - b).norm() / a.norm())


# --- schedule, average, clipping ---


def test_learning_rate_is_constant_then_falls_to_zero() -> None:
    trainer, rates = make(lr=1e-3, lr_D=4e-3), list[float]()
    fit(
        trainer,
        after=lambda step: rates.append(trainer.optimizers["G"].param_groups[0]["lr"]),
    )
    assert rates == pytest.approx([1e-3 * share for share in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)])
    assert trainer.optimizers["D"].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_text_unit_learns_at_its_own_rate() -> None:
    trainer = make(lr=1e-3, lr_text=4.0, fusion="additive", fusion_at="output", text_effect=False)
    rates = {id(p): g["base_lr"] for g in trainer.optimizers["G"].param_groups for p in g["params"]}
    of = {name: rates.pop(id(p)) for name, p in trainer.model.raw["G"].named_parameters()}
    assert not rates and {name: rate for name, rate in of.items() if rate != 1e-3} == {
        name: pytest.approx(4e-3) for name in of if name.startswith("effect")
    }


@pytest.mark.parametrize("enhancers", [0, 1])
@pytest.mark.parametrize("wait", [0, 2])
def test_every_parameter_is_in_one_group(enhancers: int, wait: int) -> None:
    """With its rate, and the epoch from which it learns."""
    options = train_options(
        lr=1e-3, lr_text=4.0, n_local_enhancers=enhancers, niter_fix_global=wait
    )
    model = Pix2PixHDModel(options, LABELS, WIDTH)
    groups = model.param_groups()
    for name, network in model.raw.items():
        listed = [id(p) for group in groups[name] for p in group["params"]]
        assert len(set(listed)) == len(listed)
        assert set(listed) == {id(p) for p in network.parameters()}
    found = {
        id(p): (group["lr"], group["from_epoch"]) for group in groups["G"] for p in group["params"]
    }
    by_text = (".fusion.", ".noise.gain.", "effect.")
    for name, parameter in model.raw["G"].named_parameters():
        rate = 4e-3 if any(part in name for part in by_text) else 1e-3
        waits = wait if enhancers and name.startswith("global_generator") else 0
        assert found[id(parameter)] == (pytest.approx(rate), waits), name


def test_average_follows_its_formula() -> None:
    trainer = make(settings={"ema": 0.5})
    own, expected = trainer.model.raw["G"], list[Tensor]()

    def follow(step: int) -> None:
        now = own.state_dict()["head.weight"]
        # The first average is the network itself; then the memory grows with the steps, up to the
        # decay.
        decay = min(0.5, step / (9 + step))
        expected.append(now.clone() if step == 1 else expected[-1] * decay + now * (1 - decay))

    fit(trainer, after=follow)
    assert torch.allclose(
        trainer.generating_network().state_dict()["head.weight"], expected[-1], atol=1e-6
    )
    assert trainer.generating_network() is not own
    assert (
        make(settings={"ema": 0.0}).generating_network().state_dict().keys()
        == own.state_dict().keys()
    )


def test_losses_carry_no_graph() -> None:
    trainer = make()
    for parts in trainer.iterate(batches(trainer), 1):
        losses = trainer.step([(part, BatchText(*part["texts"])) for part in parts])
    assert {"D", "G_gan", "G_feat", "G_mean", "G_patch", "G_quantile"} <= set(losses)
    assert not any(loss.requires_grad for loss in losses.values())


def test_no_average_on_demand() -> None:
    trainer = make(settings={"ema": 0.0})
    assert trainer.average is None and trainer.generating_network() is trainer.model.raw["G"]


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, norms = make(settings={"grad_clip": 0.01}), list[float]()
    for name, optimizer in trainer.optimizers.items():
        original = optimizer.step

        def step(original: Any = original, name: str = name) -> None:
            grads = [
                p.grad.flatten() for p in trainer.model.raw[name].parameters() if p.grad is not None
            ]
            norms.append(float(torch.cat(grads).norm()))
            original()

        monkeypatch.setattr(optimizer, "step", step)
    fit(trainer, 2)
    assert len(norms) == 4 and max(norms) <= 0.01 * 1.001 and max(norms) > 0.0099


# --- accumulation, coarse to fine ---


def test_accumulation_equals_a_large_batch() -> None:
    """To rounding; the generator of a GAN sees its discriminator change between its parts, so it
    stands alone here. Thresholds of texture, and effects that begin with gradients as small as
    Adam's epsilon, would multiply the rounding from step to step.
    """
    alone: dict[str, Any] = {"lambda_gan": 0.0, "lambda_feat": 0.0}
    for steps, at_output in ((3, False), (1, True)):
        found = {}
        flags: dict[str, Any] = {"text_texture": at_output, "text_linear": at_output}
        for parts in (1, 2):
            settings = {"gradient_accumulation": parts}
            trainer = make(settings=settings, **flags, **alone)
            fit(trainer, steps)
            found[parts] = weights(trainer)
        assert apart(found[1], found[2]) < 1e-5
    judges = {}
    for parts in (1, 2):
        trainer = make(settings={"gradient_accumulation": parts})
        fit(trainer, 1)
        judges[parts] = weights(trainer, "D")
    assert apart(judges[1], judges[2]) < 1e-5


def test_global_generator_waits_for_its_epoch() -> None:
    trainer = make(n_local_enhancers=1, niter_fix_global=2)  # two epochs of two steps
    begin, average = weights(trainer), trainer.generating_network().state_dict()
    begun_average = {k: v.clone() for k, v in average.items()}
    seen: list[tuple[bool, bool]] = []

    def look(step: int) -> None:
        changed = {k for k, v in weights(trainer).items() if not torch.equal(v, begin[k])}
        seen.append(
            (
                any(k.startswith("global_generator") for k in changed),
                any("enhancers" in k for k in changed),
            )
        )

    fit(trainer, 4, look)
    assert seen == [(False, True)] * 4
    assert all(
        torch.equal(average[k], v)
        for k, v in begun_average.items()
        if k.startswith("global_generator")
    )
    fit(trainer, 5, look)
    assert seen[-1] == (True, True)


# --- what stops a run ---


def test_a_loss_that_is_not_finite_stops_before_weights_change() -> None:
    trainer = make()
    feed = batches(trainer)
    fit(trainer, 2, feed=feed)
    before = {name: weights(trainer, name) for name in trainer.model.raw}

    def spoiled() -> Feed:
        for made in feed:
            yield {**made, "image": made["image"] * float("nan")}

    with pytest.raises(
        RunStopped, match=r"The loss of D is nan in step 3 \(D nan\).*--continue_train"
    ) as error:
        fit(trainer, 4, feed=spoiled())
    assert error.value.code == 1 and trainer.steps_done == 2
    assert all(equal(before[name], weights(trainer, name)) for name in before)


def test_the_terms_that_are_not_finite_are_named() -> None:
    trainer = make(lambda_gan=0.0, lambda_feat=0.0, lambda_patch=0.0, lambda_quantile=0.0)
    made = next(batches(trainer))
    with pytest.raises(RunStopped, match=r"The loss of G is inf in step 1 \(G_mean inf\)"):
        fit(trainer, feed=iter([{**made, "image": made["image"] * float("inf")}]))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = make()
    trainer.save(tmp_path / "latest", {}, {})
    before = (tmp_path / "latest" / "G.safetensors").read_bytes()
    with torch.no_grad():
        next(trainer.model.raw["G"].parameters())[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(
        RunStopped,
        match=r"weights of G are not finite \(global_generator\.stem\.0\.weight and 0 more\)",
    ):
        trainer.save(tmp_path / "latest", {}, {})
    assert (tmp_path / "latest" / "G.safetensors").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_training_after_its_step(number: signal.Signals) -> None:
    handlers = list(map(signal.getsignal, STOPPING))
    trainer = make()
    received = fit(trainer, after=lambda step: os.kill(os.getpid(), number) if step == 3 else None)
    assert received == number and trainer.steps_done == 3
    assert list(map(signal.getsignal, STOPPING)) == handlers


def test_an_ignored_signal_stays_ignored() -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make()
        fit(trainer, after=lambda step: os.kill(os.getpid(), signal.SIGHUP))
        assert trainer.steps_done == 8 and trainer.stop_signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def whole_state(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that a checkpoint holds."""
    state: dict[str, Tensor] = {}
    for name, optimizer in trainer.optimizers.items():
        state |= {f"{name}.{k}": v for k, v in weights(trainer, name).items()}
        tensors = checkpoint.optimizer_tensors(optimizer)
        state |= {f"optimizer_{name}.{k}": v.clone() for k, v in tensors.items()}
    assert trainer.average is not None
    state |= {f"average.{k}": v.clone() for k, v in trainer.average.module.state_dict().items()}
    return state


@pytest.mark.parametrize("place", ["before the first loss", "after D", "in the backward pass of G"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_signal_within_a_step_undoes_it(
    place: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved then is the state after the last whole step, to the last bit."""
    straight = make(norm=norm)
    fit(straight, 3)
    trainer = make(norm=norm)
    fit(trainer, 2)
    before = whole_state(trainer)
    original = trainer.model.training_step

    def interrupted(batch: Any, said: Any) -> Iterator[tuple[str, Tensor, Any]]:
        for name, loss, terms in original(batch, said):
            if place == "before the first loss" and name == "D":
                os.kill(os.getpid(), signal.SIGINT)
            if place == "in the backward pass of G" and name == "G":
                loss.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGINT))
            yield name, loss, terms
            if place == "after D" and name == "D":
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.model, "training_step", interrupted)
        with trainer.until_stopped():
            fit(trainer)
    assert trainer.stop_signal == signal.SIGINT and trainer.steps_done == 2
    assert equal(whole_state(trainer), before)
    fit(trainer, 3)
    assert equal(whole_state(trainer), whole_state(straight))


def test_a_signal_in_the_last_update_completes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    original = trainer._update

    def signalled(name: str) -> None:
        if name == "G" and trainer.steps_done == 1:
            os.kill(os.getpid(), signal.SIGINT)
        original(name)

    monkeypatch.setattr(trainer, "_update", signalled)
    with trainer.until_stopped():
        fit(trainer)
    assert trainer.stop_signal == signal.SIGINT and trainer.steps_done == 2


def test_a_signal_while_a_batch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()

    def slow_feed() -> Feed:
        for number, one in enumerate(batches(trainer)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(30)
            yield one

    start = time.monotonic()
    with trainer.until_stopped():
        fit(trainer, feed=slow_feed())
    assert time.monotonic() - start < 10
    assert trainer.stop_signal == signal.SIGTERM and trainer.steps_done == 2


def test_a_second_ctrl_c_leaves_at_once() -> None:
    trainer = make()

    def twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(trainer, after=twice)


# --- going on ---


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_run_that_goes_on_is_the_run(precision: str, channels_last: bool, tmp_path: Path) -> None:
    settings = {"channels_last": channels_last, "grad_clip": 1.0}
    straight = make(precision, settings, n_local_enhancers=1, niter_fix_global=2)
    fit(straight, 6)
    first = make(precision, settings, n_local_enhancers=1, niter_fix_global=2)
    fit(first, 3)
    first.save(tmp_path / "latest", {"labels": [0]}, {"text": {"mean": torch.ones(2)}})
    second = make(precision, settings, n_local_enhancers=1, niter_fix_global=2)
    torch.manual_seed(77)  # whatever happened before must not matter
    second.load(tmp_path / "latest")
    assert second.steps_done == 3 and checkpoint.load_state(tmp_path / "latest")["labels"] == [0]
    fit(second, 6)
    assert all(equal(weights(straight, name), weights(second, name)) for name in straight.model.raw)
    assert equal(
        straight.generating_network().state_dict(), second.generating_network().state_dict()
    )
    for name in straight.model.raw:
        kept = [checkpoint.optimizer_tensors(t.optimizers[name]) for t in (straight, second)]
        assert equal(*kept)
    layout = {p.stride() for p in second.model.raw["G"].parameters() if p.ndim == 5}
    moments = {
        s["exp_avg"].stride()
        for s in second.optimizers["G"].state.values()
        if s["exp_avg"].ndim == 5
    }
    assert moments == layout


def test_an_average_may_begin_in_a_run_that_goes_on(tmp_path: Path) -> None:
    """With --ema 0 before, nothing was averaged, and the checkpoint is complete."""
    first = make(settings={"ema": 0.0})
    fit(first, until=4)
    first.save(tmp_path / "latest", {}, {})
    trainer = make(settings={"ema": 0.999})
    trainer.load(tmp_path / "latest")
    assert equal(trainer.generating_network().state_dict(), weights(first))
    before = weights(trainer)
    fit(trainer, until=5)
    moved = apart(trainer.generating_network().state_dict(), before)
    assert 0 < moved < apart(weights(trainer), before)


def test_another_model_cannot_go_on(tmp_path: Path) -> None:
    make().save(tmp_path / "latest", {}, {})
    with pytest.raises(UserError, match=r"G\.safetensors is of another architecture.* or train"):
        make(ngf=8).load(tmp_path / "latest")
    make(lambda_gan=0.0, lambda_feat=0.0).save(tmp_path / "alone", {}, {})
    with pytest.raises(UserError, match=r"no network D: .* losses that it was trained with"):
        make().load(tmp_path / "alone")


# --- devices ---


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(
        UserError, match=r"--precision fp16 needs a GPU; on the CPU use --precision bf16 or fp32"
    ):
        make("fp16")
    assert make("bf16").accelerator.mixed_precision == "bf16"
    assert make("fp32").accelerator.mixed_precision == "no"


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_bf16_is_chosen_where_the_cpu_computes_it(
    native: bool, chosen: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert resolve_precision("auto", cpu=True) == chosen
    assert resolve_precision("bf16", cpu=True) == "bf16"
    assert ("imitates" in caplog.text) is not native


def test_gpus_that_do_not_exist() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"--gpu_ids names GPU {count}"):
        make_device(str(count))
    with pytest.raises(UserError, match="must be numbers"):
        make_device("first")
    assert make_device("-1").type == "cpu"


def test_features_of_the_discriminator_stay_in_half_precision(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Accelerate would turn every output of a network to fp32, at the price of a copy."""
    trainer = make("bf16")
    caplog.set_level(logging.WARNING)
    made = batch(train_options())
    with trainer.accelerator.autocast():
        judged, _ = trainer.model.networks["D"](
            made["image"], torch.cat([made["mask"], made["coords"]], 1), text().pooled
        )
    assert judged[0].features[0].dtype == torch.bfloat16 and judged[0].scores.dtype == torch.float32
