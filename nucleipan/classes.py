"""What a pixel can be: thing classes (nuclei), stuff classes (tissue) and void.

Ids are those of the store: 0 is void, thing and stuff classes count from 1 without gaps. Channel ``k`` of a
network's semantic output is the class with id ``k + 1``. The default things are the five nucleus types that
PanNuke made the field's common taxonomy (arXiv 2003.10778), with PanNuke's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nucleipan.errors import ConfigError

VOID_ID = 0
VOID_NAME = "void"
#: What models call the slide's glass, if they know it.
GLASS_NAME = "background"


@dataclass(frozen=True, slots=True)
class PanopticClass:
    """One class.

    Attributes:
        id: value of its pixels in class maps, from 1; 0 is void.
        name: what tables and exports call it.
        is_thing: whether it is a kind of nucleus; else it is stuff, a kind of tissue.
        color: sRGB, 0-255.
    """

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int]

    @property
    def key(self) -> str:
        """The name as a part of other names, such as a column's."""
        return self.name.replace(" ", "_").replace("-", "_")


@dataclass(frozen=True)
class PanopticClasses:
    """An ordered set of classes with ids 1..K.

    Raises:
        ConfigError: ids are not 1..K in order, a name is used twice, or there is no thing class.
    """

    classes: tuple[PanopticClass, ...]

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        if ids != list(range(1, len(ids) + 1)):
            raise ConfigError(f"class ids must count 1, 2, 3, ... in order; found {ids}")
        if len(ids) > 255:
            raise ConfigError(f"a store holds at most 255 classes; found {len(ids)}")
        keys = [c.key for c in self.classes]
        twice = sorted({c.name for c in self.classes if keys.count(c.key) > 1 or c.name == VOID_NAME})
        if twice:
            raise ConfigError(
                f"class names must be unique and not {VOID_NAME!r}, hyphens and spaces being the same; found {twice}"
            )
        if not self.things:
            raise ConfigError("at least one thing class (a kind of nucleus) is needed; found none")

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def things(self) -> tuple[PanopticClass, ...]:
        """Kinds of nuclei, in order of ids."""
        return tuple(c for c in self.classes if c.is_thing)

    @cached_property
    def stuff(self) -> tuple[PanopticClass, ...]:
        """Kinds of tissue, in order of ids."""
        return tuple(c for c in self.classes if not c.is_thing)

    @cached_property
    def thing_ids(self) -> np.ndarray:
        """uint8[T], ids of the thing classes in order."""
        return np.array([c.id for c in self.things], np.uint8)

    @cached_property
    def stuff_ids(self) -> np.ndarray:
        """uint8[S], ids of the stuff classes in order."""
        return np.array([c.id for c in self.stuff], np.uint8)

    @cached_property
    def colors(self) -> np.ndarray:
        """uint8[256, 3], sRGB by class id; black for void and ids that are no class."""
        lut = np.zeros((256, 3), np.uint8)
        for c in self.classes:
            lut[c.id] = c.color
        return lut

    def by_name(self, name: str) -> PanopticClass:
        """The class called ``name``.

        Raises:
            ConfigError: there is none; the message lists those that exist.
        """
        for c in self.classes:
            if c.name == name:
                return c
        raise ConfigError(f"unknown class {name!r}; known classes: {', '.join(c.name for c in self.classes)}")

    def by_id(self, class_id: int) -> PanopticClass:
        """The class with this id; 0, void, is none.

        Raises:
            ConfigError: there is none.
        """
        if not 1 <= class_id <= len(self.classes):
            raise ConfigError(f"class id {class_id} is outside 1..{len(self.classes)}")
        return self.classes[class_id - 1]

    def to_list(self) -> list[dict[str, Any]]:
        """JSON-ready form, as kept in stores and weights files."""
        return [{"id": c.id, "name": c.name, "is_thing": c.is_thing, "color": list(c.color)} for c in self.classes]

    @classmethod
    def from_list(cls, items: list[dict[str, Any]]) -> PanopticClasses:
        """Inverse of ``to_list``.

        Raises:
            ConfigError: an entry lacks a field or has one of the wrong kind.
        """
        try:
            return cls(
                tuple(
                    PanopticClass(int(i["id"]), str(i["name"]), bool(i["is_thing"]), _color(i["color"])) for i in items
                )
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"class list is malformed ({error!r}); expected id, name, is_thing, color") from error


def _color(value: Any) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (r, g, b)):
        raise ConfigError(f"a colour is three numbers from 0 to 255; found {value}")
    return r, g, b


#: The classes of nucleipan-accurate and nucleipan-fast. Thing colours follow QuPath's habits (tumour red, immune
#: purple, stroma green); stuff colours are paler so that nuclei stand out on tissue.
DEFAULT_CLASSES = PanopticClasses(
    (
        PanopticClass(1, "neoplastic", True, (220, 30, 40)),
        PanopticClass(2, "inflammatory", True, (120, 60, 200)),
        PanopticClass(3, "connective", True, (30, 150, 60)),
        PanopticClass(4, "dead or other", True, (240, 200, 40)),
        PanopticClass(5, "non-neoplastic epithelial", True, (250, 130, 30)),
        PanopticClass(6, "background", False, (235, 235, 235)),
        PanopticClass(7, "tumour epithelium", False, (230, 150, 160)),
        PanopticClass(8, "benign epithelium", False, (250, 205, 150)),
        PanopticClass(9, "stroma", False, (170, 215, 175)),
        PanopticClass(10, "lymphoid", False, (185, 165, 225)),
        PanopticClass(11, "smooth muscle", False, (150, 190, 220)),
        PanopticClass(12, "adipose", False, (245, 240, 170)),
        PanopticClass(13, "mucus", False, (160, 225, 225)),
        PanopticClass(14, "necrosis or debris", False, (160, 140, 120)),
    )
)
