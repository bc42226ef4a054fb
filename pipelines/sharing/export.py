"""Export of a trained run: everything that generation needs, and nothing of any patient."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from data.body import BODY_FILE
from data.splits import read_run_splits
from data.text.prompts import Template, load_template
from models.inference import TEXT_PART, LoadedRun, load_run
from models.networks.autoencoder import config_file
from models.text.encoders import LanguagePhrases, LanguageSentences
from models.text.language_model import LanguageModel, find_hub_model
from models.weights import read_weights
from options.export_options import ExportOptions
from options.parser import to_dict
from options.test_options import ModelOptions
from pipelines.evidence import EVIDENCE
from pipelines.sharing import bundle, onnx_export
from pipelines.sharing.card import CardFacts, model_card
from pipelines.sharing.redact import (
    AUTOENCODER,
    ENCODER,
    MIN_PATIENTS,
    TEMPLATE,
    case_ids,
    find_ids,
    redact_options,
    redact_state,
)
from util.cli import UserError, format_list, safe_name
from util.files import atomic_folder, atomic_path, claim_file, claim_folder, write_json
from util.training import checkpoint, runs
from util.training.shared_runs import MANIFEST, pack, write_manifest
from util.yaml_files import parse_yaml

log = logging.getLogger(__name__)

LATEST = "latest"
MODEL_PART = "G"  # of the exported checkpoint: the network that generates
ROOT = Path(__file__).resolve().parents[2]
# Files of a text encoder; records of its training hold ids and are left out.
ENCODER_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
LEFT_OUT = ("clip.json",)
PATH_ENTRIES = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")


@dataclass(frozen=True)
class SharedRun:
    """A run that is exported.

    Attributes:
        run: The run, loaded.
        template: How rows became text.
        licence: Licence of the weights; "" where it is not stated.
    """

    run: LoadedRun
    template: Template
    checkpoint_dir: Path
    licence: str

    def write(self, folder: Path) -> None:
        """Write the run into an empty folder.

        Raises:
            UserError: A file of the run is missing, or an id would be handed on.
        """
        options, state = self.run.options, self.run.state
        has_template_file = Path(options.data.template).is_file()
        redacted = redact_options(options, has_template_file)
        values = redact_state(state, self.template, self.run.generator.encoder)
        write_json(folder / runs.OPTIONS_FILE, to_dict(redacted))
        network = self.run.network.state_dict()
        text = checkpoint.load_part(self.checkpoint_dir, TEXT_PART)
        checkpoint.save(folder / LATEST, {MODEL_PART: network, TEXT_PART: text}, values)
        if options.text.text_encoder != "table":
            self._write_encoder(folder / ENCODER)
        if has_template_file:
            content = parse_yaml(Path(options.data.template).read_bytes())
            text_yaml = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            (folder / TEMPLATE).write_text(text_yaml, encoding="utf-8")
        if file := options.diffusion.autoencoder:
            shutil.copyfile(file, folder / AUTOENCODER)
            shutil.copyfile(config_file(Path(file)), config_file(folder / AUTOENCODER))
        self._write_body(folder)
        shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
        facts = CardFacts(
            self.run.folder.name,
            redacted,
            values,
            self.template,
            len(set(_splits(self.run.folder).get("train", ()))),
            _last_metrics(self.run.folder),
            sum(p.numel() for p in self.run.network.parameters()),
            self.licence,
        )
        (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
        self._check_privacy(folder)
        write_manifest(folder, self.run.folder.name, state["step"])

    def _write_encoder(self, folder: Path) -> None:
        """Write the text encoder as a folder of transformers, without paths of this machine."""
        source = _encoder_folder(self.run)
        folder.mkdir()
        for pattern in ENCODER_FILES:
            for file in sorted(source.glob(pattern)):
                if file.name in LEFT_OUT:
                    continue
                target = folder / file.name
                shutil.copyfile(file, target)
                if file.suffix == ".json":
                    _remove_paths(target)
        if not list(folder.glob("*.safetensors")):
            file = source / "pytorch_model.bin"
            weights = read_weights(file, "the run's text encoder")
            plain = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
            save_file(plain, folder / "model.safetensors", {"format": "pt"})

    def _write_body(self, folder: Path) -> None:
        """Write the mean body of the training cases, unless it is that of single patients."""
        file = self.run.folder / BODY_FILE
        if not file.is_file():
            return
        if self.run.state.get(EVIDENCE, {}).get("patients", 0) < MIN_PATIENTS:
            log.warning(
                "The mean body of the training cases is that of fewer than %d patients, so it is "
                "left out: masks without a body need their scan beside them.",
                MIN_PATIENTS,
            )
            return
        save_file(load_file(file), folder / BODY_FILE)

    def _check_privacy(self, folder: Path) -> None:
        """Raise `UserError` where a file would hand on the id of a case."""
        ids = sorted(case_ids(self.run.state, _splits(self.run.folder)))
        found = {}
        for file in sorted(folder.rglob("*")):
            if file.is_file() and (named := find_ids(file.read_bytes(), ids)):
                found[file.relative_to(folder).as_posix()] = named
        if found:
            files = [f"{name} ({format_list(named, 3)})" for name, named in found.items()]
            raise UserError(
                f"The export would hold ids of cases: {format_list(files)}. Nothing was written. "
                "Take the ids out of the names and texts of the template or the table, and train "
                "again."
            )


def export_run(options: ExportOptions) -> Path:
    """Export a run; return the file or folder, which appears whole or not at all.

    Raises:
        UserError: The run cannot be read, or what is there must not be replaced.
    """
    out = Path(options.OUT)
    is_file = options.to in ("zip", "onnx")
    if is_file and out.suffix.lower() != f".{options.to}":
        raise UserError(
            f"OUT is {options.OUT!r}; with --to {options.to} it must end in .{options.to}."
        )
    if is_file:
        claim_file(out, options.overwrite, "OUT")
    else:
        markers = [MANIFEST, bundle.METADATA_FILE]
        claim_folder(out, markers, options.overwrite, "OUT")
    shared = _open(options)
    if options.to == "onnx":
        return onnx_export.export_onnx(shared.run, out, options.onnx_size)
    if options.to == "zip":
        with atomic_path(out) as temporary, tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            folder.mkdir()
            shared.write(folder)
            pack(folder, temporary)
    else:
        with atomic_folder(out) as folder:
            if options.to == "bundle":
                (folder / bundle.RUN_FOLDER).mkdir(parents=True)
                shared.write(folder / bundle.RUN_FOLDER)
                bundle.write_bundle(folder, shared.run, (folder / bundle.RUN_FOLDER / "README.md"))
            else:
                shared.write(folder)
    log.info("%s", next_step(options, out))
    return out


def _open(options: ExportOptions) -> SharedRun:
    model = ModelOptions(
        name=options.RUN,
        checkpoints_dir=options.checkpoints_dir,
        which_epoch=options.which_epoch,
        text_encoder=options.text_encoder,
        gpu_ids="-1",
    )
    run = load_run(model)
    data = run.options.data
    template = load_template(
        data.template, tuple(run.state["columns"]), data.key_column, data.patient_column
    )
    place = checkpoint.find(run.folder / options.which_epoch)
    return SharedRun(run, template, place, options.licence)


def next_step(options: ExportOptions, out: Path) -> str:
    """Return what can be done with the export now."""
    name = shlex.quote(str(out))
    config = shlex.quote(str(out / bundle.CONFIG_FILE))
    commands = {
        "zip": f"python test.py --name {name} --mask MASK --prompt TEXT --out OUT.nii.gz",
        "hub": f"hf upload ORG/{safe_name(out.resolve().name)} {name}",
        "bundle": f"python -m monai.bundle run --config_file {config} "
        f"--bundle_root {name} --mask MASK",
    }
    return f"Wrote {out}; it holds no data of any patient. Next: {commands[options.to]}"


def _splits(folder: Path) -> dict[str, Any]:
    return dict(read_run_splits(folder / runs.SPLITS_FILE) or {})


def _last_metrics(folder: Path) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for record in runs.read_log(folder):
        metrics |= {name: value for name, value in record.items() if name.startswith("val_")}
    return metrics


def _encoder_folder(run: LoadedRun) -> Path:
    """Return the folder of a run's text encoder.

    Raises:
        UserError: The encoder is not a folder of transformers.
    """
    encoder, source = run.generator.encoder, run.text_encoder
    if not isinstance(encoder, LanguagePhrases | LanguageSentences):
        raise UserError(
            f"The run's text encoder {source} is not part of this project and cannot be exported. "
            "Train a run with a text encoder of transformers, or with --text_encoder table."
        )
    model: LanguageModel = encoder.model
    if model.layers is not None:
        raise UserError(
            "The run's text encoder is MedCLIP's, whose licence and checkpoint belong to others. "
            "It cannot be exported; train a run with another --text_encoder."
        )
    folder = Path(source)
    return folder if folder.is_dir() else find_hub_model(source, run.options.text.text_revision)


def _remove_paths(file: Path) -> None:
    """Remove entries that hold a path from a JSON file of transformers."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, dict) and not set(PATH_ENTRIES).isdisjoint(content):
        plain = {name: value for name, value in content.items() if name not in PATH_ENTRIES}
        file.write_text(json.dumps(plain, indent=1), encoding="utf-8")
