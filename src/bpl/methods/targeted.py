"""Widths that a run's target decides: found when it begins, and part of its checkpoints."""

from typing import Any

from torch import nn

from bpl.machine.processes import decide
from bpl.methods.base import Method
from bpl.widths_file import config_widths


class Targeted(Method):
    """A method that prunes to a ratio, or to the widths of a target.

    A search that measures time would find other widths on another machine, or with other threads: a run that goes on
    there takes those of its checkpoint.

    Attributes:
        widths: conv name -> filters that stay; None where the run has no target, or has not begun.
    """

    widths: dict[str, int] | None = None

    def find_widths(self, model: nn.Module) -> dict[str, int] | None:
        """The widths of the run's target; None where it has none, and the ratio counts.

        Args:
            model: the dense network, without partners.
        """
        if self.widths is None:
            self.widths = decide(lambda: config_widths(self.config, model, self.material.work))
        return self.widths

    def prepare_again(self, model: nn.Module, state: dict[str, Any]) -> nn.Module:
        self.widths = state.get("widths")  # which checkpoints of older versions have not
        return super().prepare_again(model, state)

    def state(self) -> dict[str, Any]:
        return super().state() | {"widths": self.widths}
