"""The graph of an adjustment set: which columns come before, between and after an attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dominate import svg

WIDTH = 980
BOX, GAP, LINE, PAD = (
    210,
    50,
    17,
    9,
)  # width of a box, space between boxes, height of a line, margin
TOP = 34  # above the boxes, for the arrow from common causes to the picture
MAX_LINES = 8  # columns that a box names
LETTERS = 28  # of a column's name
ROLE_TITLES = {
    "demographic": "Demographics",
    "acquisition": "Acquisition",
    "exposure": "Other exposures",
    "mediator": "Mediators",
    "outcome": "Outcomes",
    "mask": "Mask",
    "wording": "Words of the text",
}
LEGEND = (
    ("both", "adjusted for in the total and in the direct effect"),
    ("direct", "in the direct effect only"),
    ("never", "never adjusted for"),
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Box:
    """A box of the graph: its title, its lines, its class, and its upper left corner."""

    title: str
    lines: Sequence[str]
    cls: str
    x: float
    y: float

    @property
    def height(self) -> float:
        return (1 + len(self.lines)) * LINE + 2 * PAD

    @property
    def left(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        return self.x + BOX, self.y + self.height / 2

    @property
    def below(self) -> tuple[float, float]:
        return self.x + BOX / 2, self.y + self.height

    @property
    def above(self) -> tuple[float, float]:
        return self.x + BOX / 2, self.y

    def draw(self) -> None:
        with svg.g(cls=self.cls):
            svg.rect(x=self.x, y=self.y, width=BOX, height=self.height, rx=7)
            for number, text in enumerate([self.title, *self.lines]):
                line = svg.text(text, x=self.x + PAD, y=self.y + PAD + (number + 0.75) * LINE)
                if not number:
                    line["class"] = "title"


def adjustment_graph(
    column: str, rows: Sequence[Row], number: int, *, is_outcome: bool = False
) -> svg.svg:
    """Draw the graph of one attribute.

    Args:
        column: The attribute.
        rows: Its rows of adjustment.csv.
        number: Number of the graph on its page.
        is_outcome: Whether the attribute comes after the picture.
    """
    x = [PAD + k * (BOX + GAP) for k in range(3)]
    before = _stack(rows, "before", x[0])
    between = _stack(rows, "between", x[2])
    after = _stack(rows, "after", x[1])
    depth = max(_bottom(before), _bottom(between), 3 * LINE + 4 * PAD)
    middle = max(TOP, depth / 2 - LINE - PAD)
    attribute = _Box(_short(column), [], "attribute", x[1], middle)
    lowest = attribute.y + attribute.height + 2.2 * LINE
    after = [_Box(b.title, b.lines, b.cls, b.x, b.y - TOP + lowest) for b in after]
    height = max(depth + 2 * LINE, _bottom(after), attribute.y + attribute.height) + PAD
    picture_x = WIDTH - 148
    figure = svg.svg(
        viewBox=f"0 0 {WIDTH} {height:g}",
        cls="graph",
        role="img",
        aria_label=f"Columns before, between and after {column}, as in adjustment.csv",
    )
    with figure:
        head = _arrowhead(f"head-{number}")
        picture = (picture_x, attribute.y + attribute.height / 2)
        for box in before:
            _arrow(box.right, attribute.left, head)
        for box in between:
            _arrow(attribute.right, box.left, head)
            _arrow(box.right, picture, head)
        for box in after:
            _arrow(attribute.below, box.above, head)
        (x0, y0), (x1, y1) = attribute.right, picture
        under = max(depth, y0) + LINE  # the direct effect passes below what lies between
        if is_outcome:
            _arrow(picture, attribute.right, head)
        else:
            _curve(
                f"M{x0:g} {y0:g}C{x0 + GAP / 2:g} {y0:g} {x0 + GAP / 2:g} {under:g} "
                f"{x0 + GAP:g} {under:g}"
                f"H{x[2] + BOX:g}C{x1 - GAP / 2:g} {under:g} {x1 - GAP / 2:g} {y1:g} {x1:g} {y1:g}",
                head,
            )
        if before:
            (x0, y0), x1 = before[0].above, picture_x + 69
            high = TOP / 3
            _curve(
                f"M{x0:g} {y0:g}Q{x0:g} {high:g} {x0 + GAP:g} {high:g}H{x1 - GAP:g}"
                f"Q{x1:g} {high:g} {x1:g} {y1 - 18:g}",
                head,
            )
        for box in (*before, attribute, *between, *after):
            box.draw()
        with svg.g(cls="attribute"):
            svg.rect(x=picture_x, y=picture[1] - 18, width=138, height=36, rx=7)
            svg.text("Picture", x=picture_x + PAD, y=picture[1] + 5, cls="title")
    return figure


def _arrowhead(name: str) -> str:
    """Add the head of all arrows; return the reference to it."""
    size = {"markerWidth": 7, "markerHeight": 7}
    with (
        svg.defs(),
        svg.marker(id=name, viewBox="0 0 8 8", refX=7, refY=4, **size, orient="auto"),
    ):
        svg.path(d="M0 0 8 4 0 8z")
    return f"url(#{name})"


def _stack(rows: Sequence[Row], place: str, x: float) -> list[_Box]:
    """Return the boxes of a place, one per role and kind of adjustment, below each other."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["place"] != place:
            continue
        cls = "never"
        if row["direct"] == "yes":
            cls = "both" if row["total"] == "yes" else "direct"
        title = ROLE_TITLES.get(str(row["role"]), str(row["role"]))
        if place == "after" and row["role"] != "outcome":
            title = "Depend on other columns"
        elif place != "after" and cls == "never":
            title = "Known in too few scans"
        groups.setdefault((title, cls), []).append(row["other"])
    boxes: list[_Box] = []
    y = float(TOP)
    for (title, cls), names in groups.items():
        lines = [_short(name) for name in names[:MAX_LINES]]
        if len(names) > MAX_LINES:
            lines.append(f"and {len(names) - MAX_LINES} more")
        boxes.append(_Box(title, lines, cls, x, y))
        y += boxes[-1].height + PAD
    return boxes


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def _bottom(boxes: Sequence[_Box]) -> float:
    return max((box.y + box.height for box in boxes), default=0.0)


def _arrow(start: tuple[float, float], end: tuple[float, float], head: str) -> None:
    (x0, y0), (x1, y1) = start, end
    bend = (x1 - x0) / 2
    _curve(f"M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}", head)


def _curve(path: str, head: str) -> None:
    svg.path(d=path, cls="arrow", marker_end=head)
