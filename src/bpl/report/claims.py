"""The papers' own numbers, read from the one small cited file `claims.yaml`."""

from dataclasses import dataclass
from importlib import resources

import yaml


@dataclass(frozen=True)
class Claim:
    """One published result.

    Attributes:
        paper: short name of the paper.
        citation: authors, title, where.
        source: where in the paper it is stated.
        dataset: data set, by the name our records use.
        network: network.
        flops_reduction: floating-point operations removed, percent.
        accuracy_loss: top-1 lost against the paper's own dense network, points.
    """

    paper: str
    citation: str
    source: str
    dataset: str
    network: str
    flops_reduction: float
    accuracy_loss: float


def claim(paper: str, dataset: str) -> Claim | None:
    """What a paper states for a data set.

    Args:
        paper: its short name, such as "bpl".
        dataset: data set, by the name our records use.

    Returns:
        The claim, or None where no number is known to us.
    """
    text = (resources.files("bpl.report") / "claims.yaml").read_text(encoding="utf-8")
    for entry in yaml.safe_load(text):
        if (entry["paper"], entry["dataset"]) == (paper, dataset):
            return Claim(**entry)
    return None
