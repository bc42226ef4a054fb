"""Text encoders and generative models.

To add a generative model: write `models/<name>_model.py` with a subclass of
`models.base_model.GenerativeModel` under `@MODELS.register("<name>")`, and import it below;
`--model <name>` then trains and tests it. To add a text encoder or a fusion unit: the same with
`ENCODERS` (models/text/encoders.py) or `FUSIONS` (models/networks/fusion.py).
"""

from models import diffusion_model, pix2pixhd_model

__all__ = ["diffusion_model", "pix2pixhd_model"]
