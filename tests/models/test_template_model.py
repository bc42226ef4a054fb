"""The model to copy: it trains, learns a text's effect, and generates in tiles."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.base_model import MODELS, BatchText, Condition
from models.sliding_window import SlidingWindow
from models.template_model import TemplateModel
from tests.networks import LABELS, WIDTH, batch, text, train_options


def test_it_is_registered_once_it_is_imported() -> None:
    assert MODELS["template"] is TemplateModel


def test_it_learns_what_text_does_and_generates_it() -> None:
    torch.manual_seed(0)
    options = train_options(ngf=8, lr=5e-3, noise_channels=1)
    model = TemplateModel(options, LABELS, WIDTH)
    groups = model.param_groups()["G"]
    optimizer = torch.optim.Adam(groups)
    prompts = replace(
        text(2, tokens=1), pooled=torch.stack([torch.ones(WIDTH), -torch.ones(WIDTH)])
    )
    images = torch.tensor([0.3, -0.3])[:, None, None, None, None]
    for step in range(60):
        made = batch(options, 2, seed=step)
        made["image"] = images.expand_as(made["image"])
        for network, loss, terms in model.training_step(made, BatchText(prompts, prompts)):
            assert network == "G" and set(terms) == {"G_mse"}
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    made = batch(options, 1, (16, 8, 8))
    window = SlidingWindow((8, 8, 8), model.size_multiple)
    with torch.no_grad():
        first, second = (
            model.generate(
                Condition(
                    made["mask"], made["coords"], replace(text(1), pooled=prompts.pooled[i : i + 1])
                ),
                made["noise"],
                window,
            )
            for i in range(2)
        )
    assert first.shape == (1, 1, 16, 8, 8)
    assert (first - second).mean() > 0.4
