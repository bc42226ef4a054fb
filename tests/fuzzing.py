"""Damaged files for every reader of the project: a result or a message, and nothing else.

`python tests/fuzzing.py GROUP COUNT FOLDER` tries COUNT mutated inputs of each format of a group
in one process, with bounded memory, and writes the failures to FOLDER/failures.json.
"""

from __future__ import annotations

import copy
import gzip
import json
import logging
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 20
MAX_BYTES = 2 * 2**30  # beyond what the libraries take
MAX_FAILURES = 10  # of one format
TOKENS = (
    b"null", b"[", b"]", b"{", b"}", b'"', b"'", b",", b";", b"\n", b"\r", b"\t", b"\0", b"\xff",
    b"\xfc", b"\xef\xbb\xbf", b"-1", b"0", b"1e400", b"nan", b"inf", b"9" * 5000, b"[" * 5000,
    b"{" * 2000, b"=1+1", b"../../x", b"/dev/zero", b"&a", b"*a", b": ", b"- ", b"!!python/none x",
    b"x" * 140_000, b"\xe2\x80\xae", b"30000", b"-2147483648", b"4294967296",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**400, 1e400, "x", "x" * 10_000, [], {}, [None], {"x": "y"}, [[[]]],
    "../../x", float("nan"), "2020-01-01", ["x", 1], 2**63,
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A format under test.

    Attributes:
        name: Its name.
        write: Writes a valid input into a folder; returns the file that is then mutated.
        read: Reads that file.
        mutate: Returns a mutation of its content.
        allowed: Errors that readers raise beside `UserError`, as their callers expect.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    mutate: Callable[[bytes, random.Random], bytes]
    allowed: tuple[type[Exception], ...] = ()


class Hang(BaseException):
    """An input took longer than `MAX_SECONDS`."""


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, insert, remove, repeat, overwrite."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = rng.randbytes(length)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            data[place : place + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
        else:
            data[place : place + rng.choice((0, length))] = rng.choice(TOKENS)
    return bytes(data)


def mutate_head(content: bytes, rng: random.Random) -> bytes:
    """Mutate the first kilobyte, where headers are."""
    return mutate_bytes(content[:1000], rng) + content[1000:]


def mutate_gzip(content: bytes, rng: random.Random) -> bytes:
    """Mutate compressed bytes, or what they hold with checksums that are right again."""
    if rng.random() < 0.4:
        return mutate_bytes(content, rng)
    return gzip.compress(mutate_head(gzip.decompress(content), rng), 1)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Replace or remove values, or mutate the text."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2))):
        value = _with_changed_value(value, rng)
    return json.dumps(value).encode()


def _with_changed_value(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return copy.deepcopy(rng.choice(VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    if rng.random() < 0.1:
        del value[key]
    else:
        value[key] = _with_changed_value(value[key], rng)
    return value


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Mutate JSON on one of several lines."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = mutate_json(lines[place], rng)
    return b"\n".join(lines)


def mutate_zip(content: bytes, rng: random.Random) -> bytes:
    """Mutate a file within an archive, or the archive."""
    import io
    import zipfile

    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        chosen = rng.choice(names)
        for name in names:
            part = source.read(name)
            target.writestr(name, mutate_bytes(part, rng) if name == chosen else part)
    return out.getvalue()


# --- the formats


def volume_formats() -> list[Format]:
    """Return the formats of volumes."""
    import nibabel as nib
    import numpy as np
    import SimpleITK as sitk

    from data.volumes import load_volume, read_header

    def read(path: Path) -> None:
        read_header(path)
        load_volume(path)

    array = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)

    def nifti(suffix: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 2, 1])), folder / f"a{suffix}")
            return folder / f"a{suffix}"

        return write

    def itk(suffix: str, compress: bool) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.5, 1.5, 2))
            sitk.WriteImage(image, str(folder / f"a{suffix}"), compress)
            return folder / f"a{suffix}"

        return write

    return [
        Format("nii.gz", nifti(".nii.gz"), read, mutate_gzip),
        Format("nii", nifti(".nii"), read, mutate_head),
        Format("mha", itk(".mha", False), read, mutate_bytes),
        Format("mha compressed", itk(".mha", True), read, mutate_bytes),
        Format("mhd", itk(".mhd", False), read, mutate_bytes),
        Format("nrrd", itk(".nrrd", True), read, mutate_bytes),
        Format("nrrd plain", itk(".nrrd", False), read, mutate_bytes),
    ]


def dicom_formats() -> list[Format]:
    """Return DICOM files, alone and in a series."""
    from data.preparation.headers import DamagedHeader, NotDicomImage, read_slice_header
    from data.preparation.pixels import read_stack
    from data.preparation.series import stack_slices
    from data.preparation.sources import discover_sources
    from options.prepare_options import SeriesOptions
    from tests.chests import write_series

    def write(folder: Path) -> Path:
        return sorted(write_series(folder))[2]

    def read_series(path: Path) -> None:
        for source in discover_sources(path.parent, "dicom", SeriesOptions()).sources:
            if source.series is not None and not source.problem:
                read_stack(stack_slices(source.series))

    return [
        Format("dicom", write, read_slice_header, mutate_head, (DamagedHeader, NotDicomImage)),
        Format("dicom series", write, read_series, mutate_head),
    ]


def table_formats() -> list[Format]:
    """Return tables, splits, prompts, templates and effects."""
    import openpyxl

    from data.phantom.effects import DEFAULT_FILE, load_effects
    from data.splits import read_splits
    from data.table import read_table
    from data.text.prompts import load_template, read_prompts
    from data.text.template import TEMPLATES
    from pipelines.evaluation import volume_sets

    lines = [["File Name", "AGE", "SEX"], ["a", "50", "M"], ["b", "61", "F"], ["c", "", "M"]]

    def results(folder: Path) -> Path:
        (folder / "volumes").mkdir()
        for case in "ab":
            (folder / "volumes" / f"{case}.nii.gz").touch()
        return text("volumes.csv", volumes)(folder)

    def text(name: str, content: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            (folder / name).write_text(content, encoding="utf-8")
            return folder / name

        return write

    def xlsx(folder: Path) -> Path:
        book = openpyxl.Workbook()
        for line in lines:
            book.active.append(line)
        book.save(folder / "clinical.xlsx")
        return folder / "clinical.xlsx"

    table = "\n".join(",".join(line) for line in lines) + "\n"
    volumes = "file,case,kind,column\nvolumes/a.nii.gz,a,own,\nvolumes/b.nii.gz,b,own,\n"
    prompts = 'File Name,Prompt\na,"Old man, smoker."\nb,Müller\n'
    splits = json.dumps({"train": ["a", "b"], "val": ["c"], "test": []})
    template = (TEMPLATES / "aiib23.yaml").read_text()
    row = {"AGE": "50", "SEX": "M", "DIAGNOSIS": "IPF"}
    return [
        Format("csv", text("t.csv", table), lambda p: read_table(p, "File Name"), mutate_bytes),
        Format("xlsx", xlsx, lambda p: read_table(p, "File Name"), mutate_zip),
        Format("prompts.csv", text("prompts.csv", prompts), read_prompts, mutate_bytes),
        Format(
            "splits.json", text("splits.json", splits), lambda p: read_splits(p, "abc"), mutate_json
        ),
        Format("volumes.csv", results, volume_sets._factual_volumes, mutate_bytes),
        Format(
            "template",
            text("t.yaml", template),
            lambda p: load_template(str(p), list(row)).phrases(row),
            mutate_bytes,
        ),
        Format("effects", text("e.yaml", DEFAULT_FILE.read_text()), load_effects, mutate_bytes),
    ]


def run_formats() -> list[Format]:
    """Return the files of a run."""
    import torch
    from torch import nn

    from data.fact_store import FactStore
    from models.inference import RUN_ENTRIES, restore_encoder
    from models.text.encoders import build_text_encoder
    from options.base_options import TextOptions
    from options.parser import from_dict
    from options.train_options import TrainOptions
    from util.training import checkpoint, monitor, runs

    run = ROOT / "tests" / "fixtures" / "run_0_1_0" / "checkpoints" / "pix2pixhd"

    def file_of_run(name: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            shutil.copytree(run, folder / "run")
            (folder / "run" / "web").mkdir(exist_ok=True)
            image = {"step": 1, "case": "a", "prompt": "p", "file": "a.png"}
            (folder / "run" / "web" / "images.json").write_text(json.dumps([image]))
            (folder / "run" / "checks.json").write_text(json.dumps({"a|1": {"labels": [0.0]}}))
            log = [{"step": step, "loss_G": 0.5} for step in range(3)]
            (folder / "run" / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
            return folder / "run" / name

        return write

    def state(path: Path) -> None:
        values = checkpoint.load_state(path.parent, RUN_ENTRIES)
        restore_encoder(build_text_encoder(TextOptions(text_encoder="table")), path.parent, values)

    def images(path: Path) -> None:
        stand_in: Any = type("Run", (), {"folder": path.parent.parent})()
        monitor.Monitor._earlier_images(stand_in, 9)

    network = nn.Linear(3, 2)

    def saved(folder: Path) -> Path:
        checkpoint.save(folder / "latest", {"G": network.state_dict()}, {"step": 1})
        return folder / "latest" / "G.safetensors"

    def unsigned(folder: Path) -> Path:
        path = saved(folder)
        file = path.with_name("state.json")
        values = json.loads(file.read_text())
        file.write_text(json.dumps({"step": values["step"], "parts": values["parts"]}))
        return path

    def weights(path: Path) -> None:
        tensors = checkpoint.load_part(path.parent, "G")
        expected = network.state_dict()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected), "other weights"

    def unsigned_weights(path: Path) -> None:
        checkpoint.load_network(nn.Linear(3, 2), path.parent, "G")

    return [
        Format(
            "options.json",
            file_of_run("options.json"),
            lambda p: from_dict(TrainOptions, runs.read_options(p.parent), str(p)),
            mutate_json,
        ),
        Format("state.json", file_of_run("latest/state.json"), state, mutate_json),
        Format(
            "log.jsonl", file_of_run("log.jsonl"), lambda p: runs.read_log(p.parent), mutate_lines
        ),
        Format("images.json", file_of_run("web/images.json"), images, mutate_json),
        Format("checks.json", file_of_run("checks.json"), FactStore, mutate_json),
        Format("safetensors", saved, weights, mutate_bytes),
        Format("safetensors of 0.1", unsigned, unsigned_weights, mutate_bytes),
    ]


GROUPS: dict[str, Callable[[], list[Format]]] = {
    "volumes": volume_formats,
    "dicom": dicom_formats,
    "tables": table_formats,
    "runs": run_formats,
}


# --- the trial


def _ring(number: int, frame: FrameType | None) -> None:
    raise Hang


def limit_memory() -> None:
    """Let this process take `MAX_BYTES` more than it has."""
    status = Path("/proc/self/status").read_text()
    taken = next(int(line.split()[1]) for line in status.splitlines() if "VmData" in line)
    limit = 1024 * taken + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def try_format(form: Format, count: int, folder: Path) -> list[dict[str, Any]]:
    """Return the failures of one format; their inputs are kept in `folder`."""
    from util.cli import UserError

    failures: list[dict[str, Any]] = []
    expected: tuple[type[Exception], ...] = (UserError, *form.allowed)
    work = folder / form.name.replace(" ", "_")
    work.mkdir(parents=True)
    path = form.write(work)
    content = path.read_bytes()
    form.read(path)  # the valid input
    for number in range(count):
        rng = random.Random(f"{form.name} {number}")
        path.write_bytes(form.mutate(content, rng))
        (folder / "now.txt").write_text(f"{form.name} {number}")
        signal.alarm(MAX_SECONDS)
        try:
            form.read(path)
        except expected as error:
            if len(str(error)) > 5000:
                failures.append({"input": number, "error": "message of 5000 characters"})
        except (Exception, Hang) as error:
            place = traceback.format_exc().strip().splitlines()[-7:]
            text = f"{type(error).__name__}: {error}"[:300]
            failures.append({"input": number, "error": text, "place": place})
            shutil.copy(path, folder / f"failed_{work.name}_{number}")
        finally:
            signal.alarm(0)
        if len(failures) >= MAX_FAILURES:
            break
    shutil.rmtree(work)
    return failures


def main(group: str, count: int, folder: Path) -> None:
    """Try every format of a group, and write the failures."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _ring)
    formats = GROUPS[group]()
    limit_memory()
    failures = {form.name: try_format(form, count, folder) for form in formats}
    failures = {name: found for name, found in failures.items() if found}
    (folder / "failures.json").write_text(json.dumps(failures, indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
