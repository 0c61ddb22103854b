"""Class names and their indices, from the labels of a data set, a file of names or a checkpoint."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from sparsevideo.utils.files import abbreviate

MAX_CLASSES = 100_000  # a larger class index is a mistake in the list
UNLABELED = -1


def index_classes(
    location_of: Mapping[str, str],
    classes: Sequence[str] | None,
    *,
    own_classes: Sequence[str] | None = None,
    are_names: bool = False,
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names in order, and the class index of each label.

    A label is a class name or a class index. If it can be both, it is a name.

    Args:
        location_of: Labels in NFC, each with the location of its first use, for messages.
        classes: Class names in order, for example from a checkpoint. None: those of the data set.
        own_classes: Class names of the data set in order. None: `classes`, or else those that the labels imply.
        are_names: No label is an index, as in class folders.

    Raises:
        ValueError: A label is neither a class name nor a class index.

    Example:
        >>> index_classes({"right": "a.csv, line 1", "0": "a.csv, line 2"}, ["left", "right"])
        (('left', 'right'), {'right': 1, '0': 0, '': -1})
    """
    own = classes if own_classes is None else own_classes
    for label, location in () if are_names else location_of.items():
        if re.fullmatch(r"-?\d+\.0*", label) and label not in (own or ()):
            raise ValueError(f"{location}: {label} is not a class index; write {label.partition('.')[0]}")
    if own is None:
        own = _implied_classes(location_of, are_names)
    known = tuple(own if classes is None else classes)
    own = [normalize("NFC", name) for name in own]
    name_of = {} if are_names else {str(index): name for index, name in enumerate(own)}
    name_of |= {name: name for name in own}
    index_of = {normalize("NFC", name): index for index, name in enumerate(known)}
    if unknown := [label for label in location_of if name_of.get(label) not in index_of]:
        raise ValueError(
            f"{location_of[unknown[0]]}: {abbreviate(unknown)} not among the {len(known)} classes expected"
            f" ({abbreviate(known)}); correct the labels, or data.classes"
        )
    return known, {label: index_of[name_of[label]] for label in location_of} | {"": UNLABELED}


def _implied_classes(location_of: Mapping[str, str], are_names: bool) -> tuple[str, ...]:
    """Name the classes "0", "1", ... if all labels are class indices; else return the sorted labels."""
    are_indices = not are_names and all(re.fullmatch("0|-?[1-9][0-9]*", label) for label in location_of)
    for label, location in () if are_names else location_of.items():
        is_too_large = are_indices and (len(label) > 9 or int(label) >= MAX_CLASSES)  # int() refuses 5,000 digits
        if is_too_large or re.fullmatch(r"-\d+", label):
            raise ValueError(f"{location}: {label} is not a class index; write indices from 0 to {MAX_CLASSES - 1}")
    if are_indices:
        return tuple(str(index) for index in range(max(map(int, location_of), default=-1) + 1))
    return tuple(sorted(location_of))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names in order: one name per line, or a csv of `id,name` with ids from 0.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A name is missing or appears twice, or the ids are not 0, 1, 2, ...
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of class names; set data.classes to one, or to null")
    names = path.read_text("utf-8-sig", "backslashreplace").rstrip().splitlines()
    header = [field.strip().lower() for field in next(csv.reader(names[:1]), [])]
    if header[:2] in (["id", "name"], ["id", "key"]):  # of Kinetics and of EPIC-Kitchens
        rows = list(csv.reader(names[1:]))
    elif all(re.match(r"\d+\s*,", name) for name in names):
        rows = list(csv.reader(names))
    else:
        rows = [[str(index), name] for index, name in enumerate(names)]
    name_of = {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
    ordered = tuple(name_of.get(str(index), "") for index in range(len(rows)))
    if len({*ordered, ""}) <= len(ordered):
        raise ValueError(
            f"{path}: a name is missing or appears twice; write one class per line, or `id,name` with ids from 0"
        )
    return ordered
