"""Statistical shape model of masks: new masks for a row, which are nobody's.

Signed distance maps of all labels of the training masks lie in one frame around the centre of the
lungs (Leventon et al. 2000; Tsai et al. 2003). Their principal components, and the volume of every
label, are regressed on the rows. A new mask is the expected shape of its row plus a random
residual; its labels are level sets that have the expected volume plus what the residual adds to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

from data.geometry import Shape, Volume
from data.text.prompts import Row, Template
from pipelines.evaluation.memorisation import NearestScan, copy_threshold
from pipelines.synthesis.row_features import RowFeatures
from util.cli import UserError
from util.metrics.regions import bounding_box

MAX_SIDE = 48  # voxels of the frame along its longest axis
MARGIN_MM = 12.0  # of the frame around the labels
CLIP_MM = 20.0  # beyond it distances say nothing of a shape
VARIANCE = 0.98  # share that the components explain
MIN_MASKS = 10
MAX_MASKS = 300  # that are learned from, for their memory
MAX_LABELS = 16
PENALTIES = np.logspace(-2, 4, 25)  # of the ridge regression, chosen by leave-one-out error
MAX_TRIES = 20
# How far a new mask may lie outside the range of the training masks.
VOLUME_TOLERANCE = 0.25  # relative
SHARE_TOLERANCE = 0.05
CONTACT_TOLERANCE = 0.01
CUT_TOLERANCE = 0.05  # share of a label that may be lost at the border of its volume
AIRWAY_REACH_MM = 8.0  # within which the airway must come near both lungs

Array = NDArray[np.float32]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class MaskLabels:
    """Labels of a run's masks.

    Attributes:
        all: Every label that is modelled, without background, lesions, and a body that is drawn on
            reading.
        lungs: Those of the lungs.
        airway: That of the airway; it may be absent.
        lesions: Those of lesions, which count as lung.
    """

    all: tuple[int, ...]
    lungs: tuple[int, ...]
    airway: int
    lesions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Frame:
    """Cubic voxels around the centre of the lungs, in mm along the axes of a mask."""

    spacing: float
    shape: Shape

    @property
    def millilitres(self) -> float:
        """Volume of a voxel."""
        return self.spacing**3 / 1000

    @classmethod
    def around(cls, masks: Sequence[Volume], labels: MaskLabels) -> Frame:
        """Return the frame that holds all labels of all masks."""
        reach = np.zeros(3)
        finest = np.inf
        for mask in masks:
            points = np.argwhere(np.isin(mask.array, labels.all)) * mask.spacing
            reach = np.maximum(reach, np.abs(points - lung_centre(mask, labels)).max(0))
            finest = min(finest, *mask.spacing)
        extent = 2 * (reach + MARGIN_MM)
        spacing = max(float(extent.max()) / MAX_SIDE, finest)
        x, y, z = (int(np.ceil(side / spacing)) for side in extent)
        return cls(spacing, (x, y, z))

    def sample(self, values: Array, sides: NDArray[np.floating], centre: NDArray) -> Array:
        """Return values on a mask's grid as values in the frame."""
        matrix = self.spacing / sides
        middle = (np.array(self.shape) - 1) / 2
        offset = (centre - middle * self.spacing) / sides
        return np.asarray(
            ndimage.affine_transform(
                values, matrix, offset, self.shape, order=1, mode="nearest", output=np.float32
            )
        )

    def sample_back(
        self, values: Array, shape: Shape, sides: NDArray[np.floating], centre: NDArray
    ) -> Array:
        """Return values in the frame as values on a mask's grid."""
        middle = (np.array(self.shape) - 1) / 2
        offset = middle - centre / self.spacing
        return np.asarray(
            ndimage.affine_transform(
                values,
                sides / self.spacing,
                offset,
                shape,
                order=1,
                mode="nearest",
                output=np.float32,
            )
        )


def lung_centre(mask: Volume, labels: MaskLabels) -> NDArray[np.float64]:
    """Return the centre of the lungs in mm along the axes of a mask, `(3,)`."""
    lungs = np.isin(mask.array, labels.lungs)
    inside = lungs if lungs.any() else mask.array > 0
    return np.asarray(ndimage.center_of_mass(inside)) * mask.spacing


def signed_distances(mask: Volume, labels: MaskLabels, frame: Frame) -> Array:
    """Return `(K, X, Y, Z)` distances to each label's surface in the frame, mm, negative inside."""
    sides = np.array(mask.spacing)
    centre = lung_centre(mask, labels)
    maps = []
    for label in labels.all:
        inside = mask.array == label
        if inside.any():
            outward = ndimage.distance_transform_edt(~inside, sides)
            distance = outward - ndimage.distance_transform_edt(inside, sides)
            sampled = frame.sample(distance.astype(np.float32), sides, centre)
        else:
            sampled = np.full(frame.shape, CLIP_MM, np.float32)
        maps.append(np.clip(sampled, -CLIP_MM, CLIP_MM))
    return np.stack(maps)


def compose(distances: Array, levels: Sequence[float], labels: MaskLabels) -> NDArray[np.uint8]:
    """Return labels `(X, Y, Z)`: of the label deepest inside at each voxel, 0 outside of all.

    Args:
        distances: `(K, X, Y, Z)` of every label.
        levels: Distance at which the surface of each label lies.
    """
    depth = distances - np.asarray(levels, np.float32)[:, None, None, None]
    nearest = depth.argmin(0)
    names = np.array(labels.all, np.uint8)
    return np.where(depth.min(0) < 0, names[nearest], 0).astype(np.uint8)


def keep_largest_pieces(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return labels reduced to the largest piece of each (26 neighbours)."""
    kept = np.zeros_like(labels)
    for label in np.unique(labels[labels > 0]):
        pieces, count = ndimage.label(labels == label, np.ones((3, 3, 3)))
        largest = np.bincount(pieces.ravel())[1:].argmax() + 1 if count > 1 else 1
        kept[pieces == largest] = label
    return kept


def anatomy_facts(labels: Labels, spacing: float, names: MaskLabels) -> dict[str, float]:
    """Return what is compared between new and training masks, by name.

    Volume of each label in ml, share of each in its largest piece, share of the lungs' voxels that
    touch the other lung, share of the airway within the box of the lungs, and its distance to the
    lung farther from it in mm.
    """
    facts: dict[str, float] = {}
    for label in names.all:
        region = labels == label
        facts[f"volume of label {label}, ml"] = float(region.sum()) * spacing**3 / 1000
        if region.any():
            pieces, _ = ndimage.label(region, np.ones((3, 3, 3)))
            largest = np.bincount(pieces.ravel())[1:].max()
            facts[f"largest piece of label {label}, share"] = float(largest / region.sum())
    lungs = [labels == label for label in names.lungs]
    if len(lungs) == 2:
        touching = ndimage.binary_dilation(lungs[0]) & lungs[1]
        facts["contact of the lungs, share"] = float(touching.sum() / max(lungs[1].sum(), 1))
    airway = labels == names.airway
    if names.airway in names.all and airway.any() and all(lung.any() for lung in lungs):
        box = bounding_box(np.any(lungs, 0))
        facts["airway within the box of the lungs, share"] = float(airway[box].sum() / airway.sum())
        away = ndimage.distance_transform_edt(~airway) * spacing
        facts["airway to the farther lung, mm"] = float(max(away[lung].min() for lung in lungs))
    return facts


def anatomy_problems(
    facts: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]
) -> list[str]:
    """Return the facts of a new mask that lie outside the range of the training masks, in words."""
    problems = []
    for name, (low, high) in ranges.items():
        value = facts.get(name, 0.0)
        if "volume" in name:
            low, high = low * (1 - VOLUME_TOLERANCE), high * (1 + VOLUME_TOLERANCE)
        elif "contact" in name:
            low, high = 0.0, high + CONTACT_TOLERANCE
        elif "mm" in name:
            low, high = 0.0, max(high, AIRWAY_REACH_MM)
        else:
            low, high = low - SHARE_TOLERANCE, 1.0
        if not low <= value <= high:
            problems.append(f"{name}: {value:.3g}, in training masks {low:.3g} to {high:.3g}")
    return problems


@dataclass(frozen=True)
class ShapeDraw:
    """A new mask.

    Attributes:
        labels: `(X, Y, Z)` uint8 on the grid that it was asked for.
        nearest: The training mask nearest to it (1 - Dice of the lungs, both around their centre).
        problems: What is implausible about it; empty for a good one.
    """

    labels: NDArray[np.uint8]
    nearest: NearestScan
    problems: list[str]


@dataclass(frozen=True)
class ShapeModel:
    """The distribution of masks given a row.

    Attributes:
        frame: The common frame.
        features: How rows enter the regression.
        components: Principal components of the signed distances.
        score_model: Ridge regression of the components' scores on rows; None without features.
        volume_model: The same of the logarithm of every label's volume.
        mean_volumes: `(K,)` mean logarithm, where there are no features.
        residual_sd: `(M,)` SD of the scores that rows do not explain.
        residuals: Covariance of these residuals, each in units of its SD.
        residual_volumes: What the residuals add to the logarithm of the volumes.
        ranges: Smallest and largest of each of `anatomy_facts` in the training masks.
        cases: Names of the training masks.
        lungs: `(N, V)` lungs of the training masks in the frame, flat.
        reference: Distance of each training mask to the nearest one of another patient.
    """

    labels: MaskLabels
    frame: Frame
    features: RowFeatures
    components: PCA
    score_model: RidgeCV | None
    volume_model: RidgeCV | None
    mean_volumes: NDArray[np.float64]
    residual_sd: NDArray[np.float64]
    residuals: LedoitWolf
    residual_volumes: RidgeCV
    ranges: Mapping[str, tuple[float, float]]
    cases: tuple[str, ...]
    lungs: Array
    reference: NDArray[np.float64]

    @classmethod
    def from_masks(
        cls,
        cases: Sequence[str],
        masks: Sequence[Volume],
        rows: Sequence[Row],
        patients: Sequence[str],
        labels: MaskLabels,
        template: Template,
    ) -> ShapeModel:
        """Learn from training masks and their rows.

        Args:
            cases: Names of the N masks.
            patients: Their patients: masks of one patient are no reference for each other.
            template: How rows are read.

        Raises:
            UserError: Too few masks, or too many labels.
        """
        _check(len(masks), labels)
        frame = Frame.around(masks, labels)
        maps = np.stack([signed_distances(mask, labels, frame) for mask in masks])
        components = PCA(VARIANCE, svd_solver="full").fit(maps.reshape(len(maps), -1))
        scores = components.transform(maps.reshape(len(maps), -1))
        composed = [compose(one, [0.0] * len(labels.all), labels) for one in maps]
        facts = [anatomy_facts(one, frame.spacing, labels) for one in composed]
        volumes = np.array([_log_volumes(mask, labels) for mask in masks])
        features = RowFeatures.from_rows(rows, template)
        score_model = volume_model = None
        score_rest, volume_rest = scores, volumes - volumes.mean(0)
        if features.columns:
            design = features.encode(rows)
            score_model = RidgeCV(PENALTIES, alpha_per_target=True).fit(design, scores)
            volume_model = RidgeCV(PENALTIES, alpha_per_target=True).fit(design, volumes)
            score_rest = scores - score_model.predict(design).reshape(scores.shape)
            volume_rest = volumes - volume_model.predict(design).reshape(volumes.shape)
        residual_sd = np.maximum(score_rest.std(0, ddof=1), 1e-9)
        rest = score_rest / residual_sd
        lungs = [np.isin(one, labels.lungs).ravel() for one in composed]
        flat = np.asarray(lungs, np.float32)
        distances = dice_distances(flat, flat)
        names = np.asarray(patients)
        distances[names[:, None] == names[None]] = np.inf
        nearest = distances.min(1)
        return cls(
            labels,
            frame,
            features,
            components,
            score_model,
            volume_model,
            volumes.mean(0),
            residual_sd,
            LedoitWolf(assume_centered=True).fit(rest),
            RidgeCV(PENALTIES, fit_intercept=False).fit(rest, volume_rest),
            _ranges(facts),
            tuple(cases),
            flat,
            nearest[np.isfinite(nearest)],
        )

    @cached_property
    def threshold(self) -> float:
        """Distance below which a new mask is called a copy of a training mask."""
        return copy_threshold(self.reference)

    def expected_volumes(self, row: Row) -> NDArray[np.float64]:
        """Return the expected volume of each label given a row, ml `(K,)`."""
        if self.volume_model is None:
            return np.exp(self.mean_volumes)
        predicted = self.volume_model.predict(self.features.encode([row]))
        return np.exp(np.ravel(predicted))

    def draw(self, row: Row, source: Volume, seed: Sequence[int]) -> ShapeDraw:
        """Draw a mask for a row, on the grid and around the lungs' centre of another mask.

        Args:
            source: The mask whose grid and place are taken.
            seed: Decides the residual.
        """
        rng = np.random.default_rng(seed)
        count = self.components.n_components_
        expected = np.zeros(count)
        if self.score_model is not None:
            expected = np.ravel(self.score_model.predict(self.features.encode([row])))
        rest = rng.multivariate_normal(np.zeros(count), self.residuals.covariance_)
        scores = expected + rest * self.residual_sd
        flat = self.components.inverse_transform(scores[None])[0]
        distances = flat.reshape(len(self.labels.all), *self.frame.shape).astype(np.float32)
        growth = np.ravel(self.residual_volumes.predict(rest[None]))
        volumes = self.expected_volumes(row) * np.exp(growth)
        levels = [
            _level(one, volume / self.frame.millilitres)
            for one, volume in zip(distances, volumes, strict=True)
        ]
        raw = compose(distances, levels, self.labels)
        facts = anatomy_facts(raw, self.frame.spacing, self.labels)
        problems = anatomy_problems(facts, self.ranges)
        nearest = self._nearest(keep_largest_pieces(raw))
        if nearest.copied:
            problems.append(f"as close to the mask of {nearest.case} as a copy of it")
        sides = np.array(source.spacing)
        centre = lung_centre(source, self.labels)
        on_grid = [self.frame.sample_back(one, _shape(source), sides, centre) for one in distances]
        labels = keep_largest_pieces(compose(np.stack(on_grid), levels, self.labels))
        problems += self._cut_labels(labels, sides, facts)
        return ShapeDraw(labels, nearest, problems)

    def draw_plausibly(self, row: Row, source: Volume, seed: Sequence[int]) -> ShapeDraw:
        """Draw until a mask is plausible; return the last of `MAX_TRIES` where none is."""
        for number in range(MAX_TRIES):
            drawn = self.draw(row, source, [*seed, number])
            if not drawn.problems:
                break
        return drawn

    def _cut_labels(
        self, labels: NDArray[np.uint8], sides: NDArray[np.floating], facts: Mapping[str, float]
    ) -> list[str]:
        """Return the lungs that the border of the volume cuts."""
        problems = []
        for label in self.labels.lungs:
            volume = float((labels == label).sum() * np.prod(sides)) / 1000
            if volume < facts[f"volume of label {label}, ml"] * (1 - CUT_TOLERANCE):
                problems.append(f"label {label} is cut by the border of the volume")
        return problems

    def _nearest(self, labels: NDArray[np.uint8]) -> NearestScan:
        lungs = np.isin(labels, self.labels.lungs).ravel().astype(np.float32)
        distances = dice_distances(lungs[None], self.lungs)[0]
        k = int(distances.argmin())
        closest = float(min(self.reference, default=0.0))
        return NearestScan(self.cases[k], float(distances[k]), self.threshold, closest)


def _check(masks: int, labels: MaskLabels) -> None:
    if masks < MIN_MASKS:
        raise UserError(
            f"--masks shape learns from the training masks, and there are {masks}; it needs at "
            f"least {MIN_MASKS}. Use --masks deform."
        )
    if len(labels.all) > MAX_LABELS:
        raise UserError(
            f"--masks shape: the masks have {len(labels.all)} labels, and a shape model takes at "
            f"most {MAX_LABELS}. Use --masks deform."
        )


def _shape(mask: Volume) -> Shape:
    x, y, z = mask.array.shape
    return x, y, z


def _log_volumes(mask: Volume, labels: MaskLabels) -> list[float]:
    voxel = float(np.prod(mask.spacing)) / 1000
    counts = [max(int((mask.array == label).sum()), 1) for label in labels.all]
    return [float(np.log(count * voxel)) for count in counts]


def _level(distances: Array, voxels: float) -> float:
    """Return the distance below which so many voxels lie."""
    count = int(np.clip(round(voxels), 1, distances.size - 1))
    return float(np.partition(distances.ravel(), count)[count])


def _ranges(facts: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest of every fact that all training masks have."""
    common = set.intersection(*(set(one) for one in facts))
    names = [name for name in facts[0] if name in common]
    return {
        name: (min(one[name] for one in facts), max(one[name] for one in facts)) for name in names
    }


def dice_distances(first: Array, second: Array) -> NDArray[np.float64]:
    """Return 1 - Dice `(N, M)` between flat regions `(N, V)` and `(M, V)`."""
    common = first @ second.T
    sizes = first.sum(1)[:, None] + second.sum(1)[None]
    return 1 - 2 * common.astype(np.float64) / np.maximum(sizes, 1)
