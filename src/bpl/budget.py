"""A budget: the share of the dense network's cost that a smaller one may keep."""

from dataclasses import dataclass

from torch import nn

from bpl.measure import count_macs, count_params
from bpl.shown import shown

COSTS = ("macs", "params")
TARGETS = ("latency", *COSTS)  # a latency is measured, not counted (`bpl.hardware`)


@dataclass(frozen=True)
class Budget:
    """What a smaller network may cost.

    Attributes:
        cost: what is counted: "macs" (multiply-accumulates of convolutions and linear layers) or "params"; "latency"
            for a target that is measured.
        share: share of the dense network's cost that may stay, in (0, 1).
    """

    cost: str
    share: float

    @classmethod
    def parse(cls, text: str, what: str = "budget", costs: tuple[str, ...] = COSTS) -> "Budget":
        """Read a budget such as ``macs:0.26`` or ``params:0.3``.

        Args:
            text: the cost, a colon, and the share that stays.
            what: what it is called, for messages.
            costs: the costs that are allowed.

        Raises:
            ValueError: another form, an unknown cost, or a share outside (0, 1).
        """
        cost, colon, number = str(text).partition(":")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not colon or cost not in costs or not 0 < share < 1:
            forms = " or ".join(f"{cost}:SHARE" for cost in costs)
            raise ValueError(
                f"{what} is {shown(text)}: it must be {forms} with a share that stays, above 0 and below 1, such as "
                f"{costs[0]}:0.26"
            )
        return cls(cost, share)

    def __str__(self) -> str:
        return f"{self.cost}:{self.share:g}"

    def cost_of(self, model: nn.Module, image_size: int) -> int:
        """What a network costs, in this budget's count.

        Args:
            model: any network.
            image_size: height and width of its images in pixels.
        """
        return count_macs(model, image_size) if self.cost == "macs" else count_params(model)
