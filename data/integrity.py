"""Integrity of volume files: where their voxels lie, what a header claims, and checksums.

Readers check little: nibabel stops before a gzip's checksum, and ITK ignores that of a compressed
MetaImage. Raw data carries no checksum and cannot be verified.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from util.cli import UserError
from util.files import file_fingerprint

MAX_HEADER_BYTES = 1 << 20
MAX_LINE = 1000  # bytes of a field in the header of a NRRD file
CHUNK = 1 << 20
ANY_WINDOW = 47  # zlib or gzip, recognised by zlib itself
# Most bytes that one stored byte can become.
MAX_EXPANSION = {"": 1, "text": 8, "hex": 1, "zlib": 1032, "gzip": 1032, "bzip2": 100_000}
EXPANSION_SLACK = 4096
MAX_TRAILING_BYTES = 1 << 26  # of data that no header claims
BLANKS = " \t\r"
META_SIDES = ("ElementSpacing", "ElementSize")
META_NUMBERS = (
    *META_SIDES, "Offset", "Position", "Origin", "TransformMatrix", "Rotation", "Orientation",
)  # fmt: skip
META_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}  # fmt: skip
NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8"), 1),
    **dict.fromkeys(("uint8_t",), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int"), 2),
    **dict.fromkeys(("int16", "int16_t", "ushort", "unsigned short", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("unsigned short int",), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int"), 4),
    **dict.fromkeys(("uint32", "uint32_t", "float"), 4),
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t", "ulonglong"), 8),
    **dict.fromkeys(("unsigned long long", "uint64", "uint64_t", "double"), 8),
}
NRRD_ENCODINGS = {
    "raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2",
    "ascii": "text", "text": "text", "txt": "text", "hex": "hex",
}  # fmt: skip


@dataclass(frozen=True)
class VoxelData:
    """Where a volume file keeps its voxels.

    Attributes:
        path: The file with the voxels: the volume file itself, or one beside it.
        offset: Position of their first stored byte.
        encoding: A key of `MAX_EXPANSION`; "" is raw.
        claimed: Bytes that the header claims, 0 where it does not say.
        is_exact: The data is `claimed` bytes long, neither more nor less.
        has_grid: The header states voxel sizes.
    """

    path: Path
    offset: int = 0
    encoding: str = ""
    claimed: int = 0
    is_exact: bool = False
    has_grid: bool = True


def is_nifti(path: Path) -> bool:
    """Return whether a file name is that of a NIfTI file."""
    return path.name.lower().endswith((".nii.gz", ".nii"))


def find_voxel_data(path: Path) -> VoxelData:
    """Return where a volume file keeps its voxels, from its header alone.

    Raises:
        UserError: The voxels lie in a file that is not beside the header.
        ValueError: The header is damaged.
    """
    if is_nifti(path):
        return VoxelData(path, encoding="gzip" if path.name.lower().endswith(".gz") else "")
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    return _find_nrrd_data(path, head) if path.suffix.lower() == ".nrrd" else _find_meta(path, head)


def _find_meta(path: Path, head: bytes) -> VoxelData:
    """Return where a MetaImage (.mha, .mhd) keeps its voxels."""
    matches = list(re.finditer(rb"ElementDataFile[ \t]*[=:]([^\r\n]*)(\r?\n|$)", head))
    if not matches:
        raise ValueError("its header has no ElementDataFile")
    names = {match.group(1).strip().decode("utf-8", "replace") for match in matches}
    if len(names) > 1:
        raise ValueError("its header names its data twice")
    name = names.pop()
    end = matches[0].end()
    fields = _fields(head[:end], "=")
    _check_numbers(fields)
    is_local = name.upper() == "LOCAL"
    data_path = path if is_local else _beside(path, name)
    offset = end if is_local else 0
    encoding = "text" if fields.get("BinaryData", "").lower().startswith(("f", "0")) else ""
    if fields.get("CompressedData", "").lower().startswith(("t", "1")):
        if encoding:
            raise ValueError("its header says both text and compressed")
        stored = str(data_path.stat().st_size - offset)
        if fields.get("CompressedDataSize", "" if is_local else stored) != stored:
            raise ValueError("its CompressedDataSize is not the size of its data")
        encoding = "zlib"
    voxels = _product(fields.get("DimSize", ""))
    claimed = voxels * META_BYTES.get(fields.get("ElementType", ""), 0)
    return VoxelData(
        path=data_path,
        offset=offset,
        encoding=encoding,
        claimed=claimed * max(1, int(fields.get("ElementNumberOfChannels", "1"))),
        is_exact=claimed > 0,
        has_grid="ElementSpacing" in fields or "ElementSize" in fields,
    )


def _check_numbers(fields: Mapping[str, str]) -> None:
    """Raise `ValueError` for numbers of a MetaImage that its reader takes for 0, or flips by."""
    for name in META_NUMBERS:
        numbers = [float(word) for word in fields.get(name, "").split()]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"its {name} is not finite")
        if name in META_SIDES and min(numbers, default=1.0) <= 0:
            raise ValueError(f"its {name} is not above 0")


def _find_nrrd_data(path: Path, head: bytes) -> VoxelData:
    """Return where a NRRD file keeps its voxels."""
    if not head.startswith(b"NRRD"):
        raise ValueError("it does not begin with NRRD")
    match = re.search(rb"\r?\n\r?\n", head)
    end = match.end() if match else len(head)
    lines = head[:end].split(b"\n")
    if any(len(line) > MAX_LINE and b":=" not in line and line[:1] != b"#" for line in lines):
        raise ValueError("a field of its header is too long")  # ITK's reader would crash
    fields = {key.lower(): value for key, value in _fields(head[:end], ":").items()}
    name = fields.get("data file", fields.get("datafile"))
    encoding = fields.get("encoding", "raw").lower()
    if encoding not in NRRD_ENCODINGS:
        raise ValueError(f"its encoding {encoding!r} is unknown")
    skips = [fields.get(key, "0") for key in ("line skip", "lineskip", "byte skip", "byteskip")]
    claimed = _product(fields.get("sizes", "")) * NRRD_BYTES.get(fields.get("type", "").lower(), 0)
    return VoxelData(
        path=path if name is None else _beside(path, name),
        offset=end if name is None else 0,
        encoding=NRRD_ENCODINGS[encoding],
        claimed=claimed,
        is_exact=claimed > 0 and all(skip == "0" for skip in skips),
        has_grid=any(
            "none" not in fields.get(name, "none").lower() and "nan" not in fields[name].lower()
            for name in ("space directions", "spacings")
        ),
    )


def _fields(head: bytes, separator: str) -> dict[str, str]:
    """Return the fields of a text header."""
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\n"):
        name, _, value = line.partition(separator)
        fields.setdefault(name.strip(BLANKS), value.strip(BLANKS))
    return fields


def _product(sizes: str) -> int:
    """Return the product of the sizes in a header, 0 without any; they must be above 0."""
    numbers = [int(word) for word in sizes.split()]
    if min(numbers, default=1) < 1:
        raise ValueError(f"its sizes are {sizes}")
    return math.prod(numbers) if numbers else 0


def _beside(header: Path, name: str) -> Path:
    """Return the data file of a detached header; it must lie beside the header.

    Raises:
        UserError: It lies elsewhere, there are several, or it is not a file.
    """
    name = name.removeprefix("./")
    if re.match(r"LIST\b", name) or "%" in name:
        raise UserError(
            f"{header} keeps its voxels in several files ({name}). Save it as a single file, for "
            "example as .nii.gz."
        )
    path = header.parent / name
    folders = {header.parent.resolve(), header.resolve().parent}
    if not name or "/" in name or "\\" in name or path.resolve().parent not in folders:
        raise UserError(
            f"{header} names the data file {name!r}, which does not lie beside it. Put the data "
            "file into the header's folder and name it without a path."
        )
    if not path.is_file():
        raise UserError(f"{path}, the data file of {header.name}, does not exist or is not a file.")
    return path


def volume_fingerprint(path: Path) -> list[str | int]:
    """Return what tells a volume file, with its detached data, from another or an older one."""
    fingerprint = file_fingerprint(path)
    if path.suffix.lower() in (".mhd", ".mha", ".nrrd"):
        try:
            data = find_voxel_data(path).path
        except (UserError, ValueError, OSError):
            return fingerprint  # reading it says what is wrong
        if data != path:
            fingerprint = [*fingerprint, *file_fingerprint(data)]
    return fingerprint


def check_claim(path: Path, data: VoxelData, claimed: int) -> None:
    """Raise `UserError` where a header claims more voxels than the file can hold.

    Args:
        path: The volume file.
        data: Where its voxels lie.
        claimed: Bytes of the voxels in memory.
    """
    stored = max(0, data.path.stat().st_size - data.offset)
    is_compressed = data.encoding not in ("", "hex")
    limit = stored * MAX_EXPANSION[data.encoding] + (EXPANSION_SLACK if is_compressed else 0)
    if claimed > limit:
        raise UserError(
            f"{path} cannot be read as a volume: its header claims {claimed:,} bytes of voxels, "
            f"but {data.path.name} holds {stored:,} bytes. It is truncated or its header is "
            "damaged; copy or export it again."
        )


def verify_checksum(data: VoxelData) -> None:
    """Read compressed voxels to their end, and compare checksum and length; once per process.

    NIfTI files are verified while they are read (see `read_to_end`).

    Raises:
        ValueError, zlib.error, OSError, EOFError: They are damaged.
    """
    if data.encoding in ("zlib", "gzip"):
        _verify(data, tuple(file_fingerprint(data.path)))


@lru_cache(maxsize=65536)
def _verify(data: VoxelData, fingerprint: tuple[str | int, ...]) -> None:
    limit = data.claimed + MAX_TRAILING_BYTES
    length = 0
    with data.path.open("rb") as file:
        file.seek(data.offset)
        for part in _inflate(file) if data.encoding == "zlib" else _gunzip(file):
            length += part
            if length > limit:
                break
    if data.is_exact and length != data.claimed:
        raise ValueError(f"it holds {length:,} bytes of voxels, its header claims {data.claimed:,}")


def _inflate(file: BinaryIO) -> Iterator[int]:
    """Yield lengths of the parts of a zlib stream; zlib compares its checksum at the end."""
    stream = zlib.decompressobj(ANY_WINDOW)
    pending = file.read(CHUNK)
    while not stream.eof:
        if not pending:
            raise EOFError("its compressed data ends early")
        yield len(stream.decompress(pending, CHUNK))
        pending = stream.unconsumed_tail or file.read(CHUNK)


def _gunzip(file: BinaryIO) -> Iterator[int]:
    with gzip.GzipFile(fileobj=file) as stream:
        while part := stream.read(CHUNK):
            yield len(part)


def read_to_end(stream: io.BufferedIOBase) -> None:
    """Read a gzip stream to its end, so that its checksum and length are compared.

    Raises:
        ValueError: Far more data follows than a header claims.
        OSError, EOFError, zlib.error: It is damaged.
    """
    length = 0
    while part := stream.read(CHUNK):
        length += len(part)
        if length > MAX_TRAILING_BYTES:
            raise ValueError("it holds far more data than its header claims")
