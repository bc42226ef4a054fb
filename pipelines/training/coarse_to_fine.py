"""Coarse to fine: local enhancers that start from another run's trained global generator."""

from __future__ import annotations

from models.base_model import GenerativeModel
from options.parser import from_dict
from options.train_options import TrainOptions
from util.cli import UserError
from util.training import checkpoint, runs


def load_global_generator(options: TrainOptions, model: GenerativeModel) -> None:
    """Starts the local enhancers from another run's global generator (coarse to fine)."""
    folder = runs.run_folder(options.run.checkpoints_dir, options.optim.load_global)
    try:
        saved = from_dict(
            TrainOptions, runs.read_options(folder), str(folder / runs.OPTIONS_FILE)
        ).generator
        place = checkpoint.find(folder / "latest")
    except UserError as error:
        raise UserError(f"--load_global {options.optim.load_global}: {error}") from None
    if options.generator.ngf * 2**options.generator.n_local_enhancers != saved.ngf:
        raise UserError(
            f"--ngf is {options.generator.ngf}; each local enhancer halves the channels of the "
            f"global generator inside it, and that of --load_global {folder.name} has {saved.ngf}. "
            f"Give --ngf {saved.ngf // 2**options.generator.n_local_enhancers}."
        )
    part = "average" if "average" in checkpoint.load_state(place)["parts"] else "G"
    network = model.raw["G"].get_submodule("global_generator")
    checkpoint.load_network(network, place, part, prefix="global_generator.")
