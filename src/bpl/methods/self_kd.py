"""``self_kd``: the narrow network from scratch, its deepest classifier teaching shallow ones (Zhang et al., ICCV 2019).

    loss = CE(q_C, labels) + sum_{c < C} CE(q_c, labels) + weight * T^2 KL(softmax(q_C / T) || softmax(q_c / T))

q_C are the network's own logits, q_c those of an auxiliary classifier at the end of an earlier stage. No other network
is needed, and the auxiliary classifiers do not ship: what is gained by them must be in the network they leave behind.
"""

from itertools import pairwise

from torch import Tensor, nn

from bpl.block_outputs import WithBlockOutputs, block_outputs
from bpl.channels import ChannelGraph
from bpl.distill import distillation_loss
from bpl.methods.base import Batch, Training
from bpl.methods.scratch import Scratch
from bpl.models import initialise


def stage_ends(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Where the stages of a network end.

    Args:
        model: any network that ``torch.fx`` can trace.

    Returns:
        Name of the module whose output is a stage's last block output -> that map's channels, and its stride (input
        pixels per pixel), one for every stride that occurs, the shallowest first.
    """
    graph = ChannelGraph(model)
    last = {graph.sites[conv].stride: (module, conv) for module, conv in block_outputs(graph).items()}
    return {module: (graph.of_conv[conv].size, stride) for stride, (module, conv) in last.items()}


def auxiliary_classifier(stages: list[tuple[int, int]], classes: int) -> nn.Sequential:
    """A small classifier on the map of an early stage: one depthwise separable convolution for each later stage.

    Args:
        stages: channels and stride of the early stage and of all stages behind it.
        classes: number of classes.

    Returns:
        A network from maps (B, C, H, W) to logits (B, classes).
    """
    layers: list[nn.Module] = []
    for (inputs, stride), (outputs, next_stride) in pairwise(stages):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride=next_stride // stride, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    head = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(stages[-1][0], classes))
    return initialise(head)


class Classifiers(WithBlockOutputs):
    """A network with an auxiliary classifier at the end of every stage but the last.

    Args:
        network: the network, of at least two stages.
        classes: number of classes.
    """

    def __init__(self, network: nn.Module, classes: int):
        *shallow, _ = ends = stage_ends(network)
        super().__init__(network, shallow)
        stages = list(ends.values())
        self.heads = nn.ModuleList(auxiliary_classifier(stages[i:], classes) for i in range(len(shallow)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits (B, classes) of every classifier, in either mode: the network's own, then from the shallowest on."""
        logits, maps = self.logits_and_blocks(x)
        return [logits, *(head(each) for head, each in zip(self.heads, maps, strict=True))]


class SelfKD(Scratch):
    """The control ``scratch`` with auxiliary classifiers in training.

    Args:
        config: the run: `distill_weight`, `temperature`.
        material: gives the number of classes.
    """

    def prepare(self, model: nn.Module) -> nn.Module:
        return Classifiers(super().prepare(model), len(self.material.images.classes))

    def loss(self, training: Training, batch: Batch, outputs: list[Tensor]) -> Tensor:
        config, (deepest, *shallow) = self.config, outputs
        loss = super().loss(training, batch, deepest)
        teacher = deepest.detach()  # it learns from the labels alone
        for logits in shallow:
            distilled = distillation_loss(logits, teacher, config.temperature)
            loss = loss + self.cross_entropy(logits, batch.labels) + config.distill_weight * distilled
        return loss

    def as_shipped(self, model: Classifiers) -> nn.Module:
        return model.network

    def as_trained(self, model: Classifiers) -> nn.Module:
        return model.network

    def finish(self, model: Classifiers) -> nn.Module:
        return super().finish(model.network)
