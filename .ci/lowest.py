"""Write pip constraints that hold every declared dependency at its lower bound.

python .ci/lowest.py > lowest.txt && pip install -c lowest.txt -e '.[export,fcs,book,test]'
"""

from __future__ import annotations

import itertools
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lowest(project: Path = PROJECT) -> dict[str, str]:
    """The lower bounds of a project's dependencies, those of its extras included.

    Args:
        project: its pyproject.toml.

    Returns:
        Name of the package -> version; the higher one where two extras ask for different ones.

    Raises:
        ValueError: a dependency without a lower bound.
    """
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = {}
    extras = declared["optional-dependencies"].values()
    for text in itertools.chain(declared["dependencies"], *extras):
        requirement = Requirement(text)
        bounds = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(
                f"{project.name} asks for {text!r}: give it one lower bound, such as {requirement.name}>=1.0"
            )
        found[requirement.name] = max(bounds[0], found.get(requirement.name, "0"), key=Version)
    return found


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in lowest().items())
