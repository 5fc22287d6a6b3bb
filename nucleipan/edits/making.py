"""From what a user chose or drew to an edit, which ``EditLog.append`` then saves.

Points are (y, x) in level-0 pixels of the store, where pixel (i, j) covers [i, i + 1) x [j, j + 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nucleipan.edits import operations
from nucleipan.edits.edit import MAX_SIDE, Edit, EditError
from nucleipan.edits.log import EditLog
from nucleipan.geometry import Box


def merge_nuclei(log: EditLog, ids: Iterable[int], class_id: int | None = None) -> Edit:
    """Two or more nuclei become one, of class ``class_id``, or else that of the largest.

    Raises:
        EditError: there are fewer than two, they are too far apart, or one is not there.
    """
    chosen = _known(log, ids)
    box = _around(log, chosen)
    plane, new = log.instances(box), log.next_id
    merged = operations.merge(plane, chosen, new)
    largest = max(chosen, key=lambda i: int((plane == i).sum()))
    class_id = log.class_of(largest) if class_id is None else _thing(log, class_id)
    return Edit("merge", chosen, {new: class_id}, box, plane, merged)


def split_nuclei(log: EditLog, line: np.ndarray) -> Edit:
    """Every nucleus that the line (float[n, 2]) parts becomes two of its class.

    Raises:
        EditError: it parts none, or one into more than two.
    """
    touched = nuclei_on_line(log, line)
    if not touched:
        raise EditError("the line touches no nucleus; draw it across one")
    box = _around(log, touched)
    plane = log.instances(box)
    parted, parent_of = operations.split(plane, np.asarray(line) - (box.y0, box.x0), log.next_id)
    classes = {new: log.class_of(old) for new, old in parent_of.items()}
    return Edit("split", tuple(sorted(set(parent_of.values()))), classes, box, plane, parted)


def delete_nuclei(log: EditLog, ids: Iterable[int]) -> Edit:
    """Nuclei that are none; their pixels become tissue.

    Raises:
        EditError: none is given, or one is not there.
    """
    chosen = _known(log, ids)
    box = _around(log, chosen)
    plane = log.instances(box)
    return Edit("delete", chosen, {}, box, plane, operations.delete(plane, chosen))


def redraw_nucleus(log: EditLog, ring: np.ndarray, nucleus: int | None, class_id: int | None = None) -> Edit:
    """``nucleus`` gets the outline ``ring`` (float[n, 2], closed or not); without one, a new nucleus is added.

    It keeps its class unless ``class_id`` says otherwise; a new one needs it. Pixels of other nuclei stay theirs.

    Raises:
        EditError: the polygon encloses too little, or the nucleus is not there.
    """
    box, old = _covered(log, ring), () if nucleus is None else _known(log, [nucleus])
    if old:
        box = _joined([box, log.box_of(old[0])])
    if class_id is None and not old:
        raise EditError("a new nucleus needs a class; choose one")
    class_id = log.class_of(old[0]) if class_id is None else _thing(log, class_id)
    drawn, plane = old[0] if old else log.next_id, log.instances(box)
    redrawn = operations.redraw(plane, np.asarray(ring) - (box.y0, box.x0), drawn)
    return Edit("redraw", old, {drawn: class_id}, box, plane, redrawn)


def change_class(log: EditLog, ids: Iterable[int], class_id: int) -> Edit:
    """Nuclei get another class; those that have it already are left aside.

    Raises:
        EditError: none is left, one is not there, or the class is no kind of nucleus.
    """
    name = log.store.classes.by_id(_thing(log, class_id)).name
    chosen = tuple(i for i in _known(log, ids) if log.class_of(i) != class_id)
    if not chosen:
        raise EditError(f"every chosen nucleus is of class {name} already; choose others, or another class")
    box = _around(log, chosen)
    plane = log.instances(box)
    return Edit("class", chosen, dict.fromkeys(chosen, class_id), box, plane, plane.copy())


def nuclei_on_line(log: EditLog, line: np.ndarray) -> tuple[int, ...]:
    """The nuclei that a line (float[n, 2]) touches, in its order.

    Raises:
        EditError: it is no line, or longer than corrections can be.
    """
    box = _covered(log, line)
    rows, cols = operations.line_pixels(np.asarray(line) - (box.y0, box.x0), box.shape)
    return tuple(dict.fromkeys(i for i in log.instances(box)[rows, cols].tolist() if i))


def nucleus_in_polygon(log: EditLog, ring: np.ndarray) -> int | None:
    """The nucleus that somebody who draws the polygon ``ring`` (float[n, 2]) means; None for a new one.

    It is the one that holds most of the polygon's pixels, if that is half of the polygon or half of the nucleus.

    Raises:
        EditError: it is no polygon, or larger than corrections can be.
    """
    box = _covered(log, ring)
    inside = operations.polygon_mask(np.asarray(ring) - (box.y0, box.x0), box.shape)
    ids, counts = np.unique(log.instances(box)[inside], return_counts=True)
    counts[ids == 0] = 0
    if not counts.any():
        return None
    nucleus, n_shared = int(ids[counts.argmax()]), int(counts.max())
    n_own = int((log.instances(log.box_of(nucleus)) == nucleus).sum())
    return nucleus if 2 * n_shared >= min(n_own, int(inside.sum())) else None


def _known(log: EditLog, ids: Iterable[int]) -> tuple[int, ...]:
    """``ids``, ascending and each once, all of which are there."""
    chosen = tuple(sorted({int(i) for i in ids}))
    if not chosen:
        raise EditError("no nucleus is chosen; choose one")
    for nucleus in chosen:
        log.class_of(nucleus)
    return chosen


def _thing(log: EditLog, class_id: int) -> int:
    things = {c.id: c.name for c in log.store.classes.things}
    if class_id not in things:
        raise EditError(f"class {class_id} is no kind of nucleus; choose one of {', '.join(things.values())}")
    return class_id


def _around(log: EditLog, ids: Sequence[int]) -> Box:
    return _joined([log.box_of(i) for i in ids])


def _covered(log: EditLog, points: np.ndarray) -> Box:
    """The pixels of the store around what was drawn."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not (np.abs(points) < 2**31).all():
        raise EditError(f"expected two points or more, (y, x) each; found {points.shape}; draw it again")
    (y0, x0), (y1, x1) = np.floor(points.min(0)).astype(int).tolist(), np.floor(points.max(0)).astype(int).tolist()
    box = Box(y0, x0, y1 + 1, x1 + 1).clipped(Box.of_shape(log.store.shape))
    if box.is_empty:
        raise EditError("what was drawn lies outside the slide; draw it on nuclei")
    return _joined([box])


def _joined(boxes: Sequence[Box]) -> Box:
    """The smallest box around all.

    Raises:
        EditError: it is larger than that of an edit can be.
    """
    box = Box(min(b.y0 for b in boxes), min(b.x0 for b in boxes), max(b.y1 for b in boxes), max(b.x1 for b in boxes))
    if max(box.shape) > MAX_SIDE:
        raise EditError(
            f"it spans {box.height} x {box.width} pixels; an edit holds {MAX_SIDE} in each direction; make several"
        )
    return box
