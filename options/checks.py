"""Rules between flags, checked before any long work starts."""

from __future__ import annotations

from options.train_options import TrainOptions
from util.cli import UserError, world_size


def check_train_options(options: TrainOptions) -> None:
    """Raises `UserError` where flags do not go together."""
    check_diffusion(options)
    g, optim, low_high = options.generator, options.optim, options.data.hu_window
    stride = 2 ** (g.n_downsample_global + g.n_local_enhancers)
    multiple = 2 * stride  # tiles overlap by half, and each must start on a multiple of the stride
    size = options.patch.patch_size
    if any(s % multiple for s in size):
        good = ",".join(str(max(multiple, round(s / multiple) * multiple)) for s in size)
        raise UserError(
            f"--patch_size is {','.join(map(str, size))}; with {g.n_downsample_global} halvings "
            f"and {g.n_local_enhancers} local enhancers every side must be a multiple of "
            f"{multiple}, so that half of it can be halved as often. The nearest that works: "
            f"--patch_size {good}."
        )
    if low_high[0] >= low_high[1]:
        raise UserError(
            f"--hu_window is {low_high[0]:g},{low_high[1]:g}; the first must be below the second."
        )
    world = world_size()
    if optim.batch_size % (world * optim.gradient_accumulation):
        raise UserError(
            f"--batch_size is {optim.batch_size}; it must be a multiple of processes x "
            f"--gradient_accumulation, {world} x {optim.gradient_accumulation}."
        )
    if optim.max_steps == 0 and optim.niter + optim.niter_decay == 0:
        raise UserError("--niter, --niter_decay and --max_steps are all 0; give one of them.")
    if optim.load_global and not g.n_local_enhancers:
        raise UserError(
            "--load_global is for local enhancers; give --n_local_enhancers 1 or more with it."
        )
    if len(options.run.val_effect) > 1:
        raise UserError(
            f"--val_effect is given {len(options.run.val_effect)} times; one attribute can be "
            "followed."
        )
    weights = options.loss
    if not (
        weights.lambda_gan or weights.lambda_feat or weights.lambda_l1 or weights.lambda_perceptual
    ):
        raise UserError(
            "All loss weights (--lambda_gan, _feat, _l1, _perceptual) are 0; give one of them."
        )


def check_diffusion(options: TrainOptions) -> None:
    """Raises `UserError` where flags of a diffusion model do not go together; what a run samples
    with is checked by it.
    """
    g, d = options.generator, options.diffusion
    if "diffusion" not in g.model:
        return
    if g.n_local_enhancers:
        raise UserError(
            f"--n_local_enhancers is {g.n_local_enhancers}; they belong to --model pix2pixhd. Use "
            "0."
        )
    if d.diffusion_target == "noise" and d.zero_snr:
        raise UserError(
            "--diffusion_target noise cannot be learnt where nothing but noise is left, and "
            "--zero_snr lets the schedule end there. Use --diffusion_target v or flow, or "
            "--no-zero_snr."
        )
