"""Time and memory of a training step of the published reference's own networks.

`benchmarks/step.py --reference` calls it in a process of its own, in which the reference's packages
(models, ...) stand in place of the project's. REFERENCE is a clone of github.com/junzhin/DGM-VLC
(arXiv 2410.13823). Its generator, discriminator and criteria are trained in fp32 as its code does:
Adam, a least-squares GAN, twice the squared error and half of 1 - r^2. The prompt is a random
embedding of the width that it expects; its text encoder is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

GENERATORS = {
    "attention": "resnet_9blocks_with_text_encoder",
    "affine": "resnet_9blocks_with_text_encoder3",
}
LABELS = 4
TEXT_WIDTH = 512


def make_step(o: argparse.Namespace) -> Callable[[], None]:
    """Return a function that takes a training step."""
    helper = importlib.import_module("models.model_helper")
    criteria = importlib.import_module("models.networks3D")
    device = torch.device(o.device)
    torch.manual_seed(0)
    generator = helper.define_G(LABELS, 1, o.ngf, GENERATORS[o.form], "instance", False, "kaiming")
    discriminator = helper.define_D(1, o.ngf, "n_layers", 3, "instance", False, "kaiming")
    adversarial = criteria.GANLoss(use_lsgan=True).to(device)
    networks = generator.to(device), discriminator.to(device)
    optimisers = [torch.optim.Adam(n.parameters(), lr=1e-4, betas=(0.5, 0.999)) for n in networks]
    batch, *size = o.batch
    mask = torch.rand(batch, LABELS, *size, device=device)
    real = torch.rand(batch, 1, *size, device=device) * 2 - 1
    prompt = torch.randn(batch, TEXT_WIDTH, device=device)
    # The affine form also takes the device, on which it draws noise.
    further = {"opt": SimpleNamespace(device=device)} if o.form == "affine" else {}

    def step() -> None:
        fake = generator(mask, prompts=prompt, **further)
        discriminator.requires_grad_(True)
        optimisers[1].zero_grad()
        judged = adversarial(discriminator(real), True)
        judged = judged + adversarial(discriminator(fake.detach()), False)
        (judged / 2).backward()
        optimisers[1].step()
        discriminator.requires_grad_(False)
        optimisers[0].zero_grad()
        loss = adversarial(discriminator(fake), True)
        loss = loss + 2 * torch.nn.functional.mse_loss(fake, real)
        loss = loss + criteria.Cor_CoeLoss(fake, real) / 2
        loss.backward()
        optimisers[0].step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure(o: argparse.Namespace) -> dict[str, Any]:
    """Return median seconds and peak GiB of a step, after a first one that is not counted."""
    step = make_step(o)
    on_gpu = torch.device(o.device).type == "cuda"
    now = time.perf_counter if on_gpu else time.process_time  # of all processors
    seconds = []
    for _ in range(1 + o.steps):
        start = now()
        step()
        seconds.append(now() - start)
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"median_s": statistics.median(seconds[1:]), "all_s": seconds[1:], "peak_gib": peak}


def main() -> None:
    """Measure a form, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--form", choices=sorted(GENERATORS), required=True)
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--ngf", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    sys.path.insert(0, str(o.reference))
    with contextlib.redirect_stdout(sys.stderr):  # its networks print
        figures = measure(o)
    o.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
