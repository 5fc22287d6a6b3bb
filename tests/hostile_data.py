"""What hostile files are made of, for the tests of what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

#: The beginning of an XML document with entities that stand for 10 to the power of 12 times "ha"; to be closed with ]>.
LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + k)} "{f"&{chr(97 + k)};" * 10}">' for k in range(12)
)


class Evil:
    """Leaves a folder ``trace`` where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)
