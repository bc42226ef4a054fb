"""Lesions as labels of a mask: a nodule or a ground-glass opacity at a given place in the lung."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from data.body import surrounding_label
from data.checks.masks import load_labels
from data.geometry import Volume
from data.text.prompts import load_template
from data.volumes import strip_suffix, write_like
from options.lesion_options import DENSITIES, LesionOptions
from util.cli import UserError, format_list
from util.files import claim_file, write_csv
from util.metrics.regions import DEPTH_NAMES, Mask, chest_regions, region_name

log = logging.getLogger(__name__)

LESION_TEMPLATE = "lesions"  # data/templates/lesions.yaml
KEY = "File Name"
# Columns of a table that name the lesion, as the template words them.
LESION, SIZE, PLACE = "LESION", "LESION SIZE", "LESION PLACE"
SIDES = {"left": "left_lung", "right": "right_lung"}
THIRDS = ("upper", "middle", "lower")
DEPTHS = {name: region for region, name in DEPTH_NAMES.items()}  # subpleural, central
MAX_OUTSIDE = 0.1  # share of a nodule's ball that may lie on vessels left out of the lung's label
MAX_LUNG_SHARE = 0.5  # of one lung, that a lesion may fill
# Amplitude of the smooth noise in the radius: nodules are lobulated, ground glass is irregular.
IRREGULARITY = {"nodule": 0.12, "ground_glass": 0.35}

Labels = NDArray[np.integer]
Index = NDArray[np.integer]


@dataclass(frozen=True)
class Lesion:
    """A lesion in a mask.

    Attributes:
        options: What was asked for.
        labels: The mask `(X, Y, Z)` with the lesion in it.
        voxels: Its voxels, `(X, Y, Z)`.
        centre_mm: The middle that it was put at, RAS.
        place: Where that is, such as "right upper central".
        earlier: Labels of lesions that the mask held before.
    """

    options: LesionOptions
    labels: Labels
    voxels: Mask
    centre_mm: tuple[float, float, float]
    place: str
    earlier: Sequence[int] = ()

    @property
    def row(self) -> dict[str, str]:
        """The cells of a table that name it."""
        return {
            LESION: lesion_name(self.options.kind, self.options.density),
            SIZE: f"{self.options.diameter:g}",
            PLACE: self.place,
        }


def lesion_name(kind: str, density: str) -> str:
    """Return the name of a lesion in the text, by the terms of the Fleischner Society."""
    if kind == "ground_glass":
        return "ground-glass opacity"
    return f"{density.replace('_', '-')} nodule"


def insert_lesion(mask: Volume, options: LesionOptions, source: str) -> Lesion:
    """Put a lesion into a mask.

    Its volume is that of a ball of the asked diameter. A smooth random field makes its border
    lobulated or irregular.

    Args:
        mask: Labels in RAS.
        options: Kind, place, size and density.
        source: The mask's file, for messages.

    Raises:
        UserError: No lung, or a place or size at which the lesion does not lie within one lung.
    """
    labels = mask.array
    body = surrounding_label(labels, options.lung_labels)
    label = _lesion_label(options, body, source)
    sides = np.array(mask.spacing)
    volume = np.pi / 6 * options.diameter**3
    count = round(volume / float(np.prod(sides)))
    if count < 1:
        raise UserError(
            f"--diameter is {options.diameter:g} mm, less than a voxel of {source} "
            f"({' x '.join(f'{side:g}' for side in sides)} mm). Give a larger one."
        )
    regions = chest_regions(labels, mask.spacing, options.lung_labels, options.airway_label)
    if "lungs" not in regions:
        raise UserError(
            f"{source} holds no lung (--lung_labels {','.join(map(str, options.lung_labels))}); "
            f"its labels are {', '.join(map(str, np.unique(labels)))}. Name those of the left and "
            "the right lung with --lung_labels."
        )
    lungs = [regions[name] for name in SIDES.values() if name in regions] or [regions["lungs"]]
    centre = _centre(mask, options, regions, source)
    lung = next((lung for lung in lungs if lung[tuple(centre)]), None)
    if lung is None:
        raise UserError(
            f"--at {_format(options.at)} is not in a lung of {source}: the voxel there has the "
            f"label {labels[tuple(centre)]}. Nearest lung: --at {_nearest(mask, lungs, centre)}."
        )
    if count > MAX_LUNG_SHARE * lung.sum():
        largest = (6 / np.pi * MAX_LUNG_SHARE * lung.sum() * float(np.prod(sides))) ** (1 / 3)
        raise UserError(
            f"--diameter is {options.diameter:g} mm, and such a lesion fills more than half of the "
            f"lung, which holds one of {np.floor(largest):g} mm at most. Give a smaller one."
        )
    distance = _distance(labels.shape, centre, sides) / (options.diameter / 2)
    _check_ball(np.where(labels == body, 0, labels), lung, distance <= 1, options, source)
    noise = _smooth_noise(labels.shape, sides, options)
    field = distance + IRREGULARITY[options.kind] * noise
    field[~lung] = np.inf
    voxels = np.zeros(labels.shape, bool)
    voxels.flat[np.argsort(field, axis=None, kind="stable")[:count]] = True
    voxels = _connected(voxels, centre)
    changed = labels.astype(np.uint8)
    changed[voxels] = label
    x, y, z = (float(value) for value in apply_affine(mask.affine, centre))
    earlier = sorted(set(np.unique(labels).tolist()) & set(DENSITIES.values()) - {body})
    place = _describe_place(regions, centre)
    return Lesion(options, changed, voxels, (x, y, z), place, earlier)


def _lesion_label(options: LesionOptions, body: int | None, source: str) -> int:
    label = options.label or DENSITIES[options.density]
    if label == body:
        raise UserError(
            f"Label {label} surrounds the lungs in {source}: it is the body, not a lesion. Choose "
            "another number with --label, the one that the masks of the run use for such lesions."
        )
    if label in (*options.lung_labels, options.airway_label):
        raise UserError(
            f"--label is {label}, which is a lung or the airways. Choose another number, the one "
            "that the masks of the run use for such lesions."
        )
    return label


def _centre(mask: Volume, options: LesionOptions, regions: dict[str, Mask], source: str) -> Index:
    """Return the voxel of the lesion's middle."""
    if options.at is not None:
        centre = np.rint(apply_affine(np.linalg.inv(mask.affine), options.at))
        if (centre < 0).any() or (centre >= mask.shape).any():
            raise UserError(
                f"--at {_format(options.at)} lies outside of {source}, whose middle is at "
                f"{_format(apply_affine(mask.affine, (np.array(mask.shape) - 1) / 2))} mm (RAS)."
            )
        return centre.astype(int)
    return _find_place(mask, options, regions, source)


def _find_place(
    mask: Volume, options: LesionOptions, regions: dict[str, Mask], source: str
) -> Index:
    """Return a voxel of the named place, drawn by the seed, around which the lesion fits."""
    named = _region_names(options.place)
    if missing := [name for name in named if name not in regions]:
        hint = " A single label of lungs tells no sides: give --at." * (
            len(options.lung_labels) == 1 and missing[0] in SIDES.values()
        )
        raise UserError(
            f"--place {options.place!r}: {source} has no {region_name(missing[0])}.{hint}"
        )
    where = np.logical_and.reduce([regions[name] for name in named])
    free = np.isin(mask.array, options.lung_labels)
    depth = ndimage.distance_transform_edt(np.pad(free, 1), sampling=mask.spacing)[1:-1, 1:-1, 1:-1]
    candidates = np.argwhere(where & (depth >= options.diameter / 2))
    if not len(candidates):
        largest = 2 * float(depth[where].max()) if where.any() else 0.0
        raise UserError(
            f"--place {options.place!r} has no room for {options.diameter:g} mm: the largest ball "
            f"of lung around a voxel there has {largest:.0f} mm. Give a smaller --diameter or "
            "another --place; --at puts a lesion at the pleura or over vessels."
        )
    return candidates[np.random.default_rng(options.seed).integers(len(candidates))]


def _region_names(place: str) -> list[str]:
    """Return the regions that the words of a place name, such as "right upper central".

    Raises:
        UserError: Words that are not known, or no side.
    """
    words = place.lower().replace(",", " ").split()
    known = {**SIDES, **{third: third for third in THIRDS}, **DEPTHS}
    if unknown := [word for word in words if word not in known]:
        raise UserError(
            f"--place is {place!r}; {unknown[0]!r} is not one of: {format_list(list(known))}."
        )
    if sum(word in SIDES for word in words) != 1:
        raise UserError(
            f"--place is {place!r}; it must name one side, left or right, such as "
            '"right upper central".'
        )
    return [known[word] for word in words]


def _describe_place(regions: dict[str, Mask], centre: Index) -> str:
    """Return side, third and depth of a voxel in words."""
    words = [word for word, region in SIDES.items() if _holds(regions, region, centre)]
    words += [third for third in THIRDS if _holds(regions, third, centre)]
    words += [word for word, region in DEPTHS.items() if _holds(regions, region, centre)]
    return " ".join(words)


def _holds(regions: dict[str, Mask], name: str, voxel: Index) -> bool:
    return name in regions and bool(regions[name][tuple(voxel)])


def _distance(
    shape: Sequence[int], centre: Index, sides: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the distance of every voxel from a voxel in mm."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    squares = [
        np.square((axis - middle) * side)
        for axis, middle, side in zip(axes, centre, sides, strict=True)
    ]
    return np.sqrt(squares[0] + squares[1] + squares[2]).astype(np.float64)


def _check_ball(
    labels: Labels, lung: Mask, ball: Mask, options: LesionOptions, source: str
) -> None:
    """Check that a lesion's ball overlaps no other label, and that a nodule's lies in the lung.

    Ground glass ends at the pleura, so that its ball may go beyond.
    """
    others = sorted(set(np.unique(labels[ball]).tolist()) - {0, *options.lung_labels})
    if others:
        name = "the airways" if others[0] == options.airway_label else f"label {others[0]}"
        raise UserError(
            f"A lesion of {options.diameter:g} mm at this place overlaps {name} of {source}. Move "
            "it (--at, --place with another --seed) or make it smaller (--diameter)."
        )
    outside = 1 - float(lung[ball].mean())
    if options.kind == "nodule" and outside > MAX_OUTSIDE:
        raise UserError(
            f"{outside:.0%} of a nodule of {options.diameter:g} mm at this place lie outside the "
            "lung. Move it (--at, --place) or make it smaller (--diameter)."
        )


def _smooth_noise(
    shape: Sequence[int], sides: NDArray[np.floating], options: LesionOptions
) -> NDArray[np.float64]:
    """Return noise of SD 1 that varies over a third of the lesion's diameter."""
    noise = np.random.default_rng([options.seed, 1]).standard_normal(tuple(shape))
    smooth = ndimage.gaussian_filter(noise, options.diameter / 6 / sides)
    return np.asarray(smooth / max(float(smooth.std()), 1e-12))


def _connected(voxels: Mask, centre: Index) -> Mask:
    """Return the part around the middle; the whole where the middle's voxel is not part of it."""
    parts, _ = ndimage.label(voxels, np.ones((3, 3, 3)))
    number = parts[tuple(centre)]
    return parts == number if number else voxels


def _nearest(mask: Volume, lungs: Sequence[Mask], centre: Index) -> str:
    """Return the nearest lung voxel to a voxel, in mm, for a message."""
    places = np.argwhere(np.logical_or.reduce(list(lungs)))
    nearest = places[np.square((places - centre) * mask.spacing).sum(1).argmin()]
    return _format(apply_affine(mask.affine, nearest))


def _format(place: Sequence[float] | NDArray[np.floating] | None) -> str:
    return ",".join(f"{value:.0f}" for value in place) if place is not None else ""


def write_lesion(options: LesionOptions) -> Lesion:
    """Put a lesion into a mask file; write the new mask, and a table that names the lesion.

    Raises:
        UserError: Files that cannot be read or must not be replaced, or see `insert_lesion`.
    """
    out = Path(options.OUT)
    if not out.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"OUT is {options.OUT!r}; it must end in .nii.gz or .nii.")
    table = out.with_name(f"{strip_suffix(out.name)}.csv")
    for path in (out, table):
        claim_file(path, options.overwrite, "OUT")
    mask = load_labels(options.MASK)
    lesion = insert_lesion(mask, options, options.MASK)
    if lesion.earlier:
        log.warning(
            "%s already holds lesions (label %s). Table and text name the new one alone, because a "
            "row has room for one; word the others in a column of your own.",
            options.MASK,
            format_list([str(label) for label in lesion.earlier]),
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_like(out, lesion.labels, options.MASK, np.uint8)
    write_csv(table, [KEY, *lesion.row], [{KEY: out.name, **lesion.row}])
    template = load_template(LESION_TEMPLATE, list(lesion.row))
    millilitres = lesion.voxels.sum() * float(np.prod(mask.spacing)) / 1000
    log.info(
        "%s: %s of %g mm (%.2f ml), %s, at %s mm (RAS), label %d. In the text: %s",
        out,
        lesion.row[LESION],
        options.diameter,
        millilitres,
        lesion.place,
        _format(lesion.centre_mm),
        int(lesion.labels[lesion.voxels][0]),
        " ".join(template.phrases(lesion.row).texts),
    )
    settings = " ".join(f'--set "{name}={value}"' for name, value in lesion.row.items())
    log.info(
        "Generate it with a run of such lesions: python test.py --name RUN --mask %s %s",
        shlex.quote(str(out)),
        settings,
    )
    return lesion
