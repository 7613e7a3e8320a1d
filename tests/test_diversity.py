"""The diversity loss: values by hand, gradients by finite differences, and what must not change it."""

import copy

import pytest
import torch
from exactness import images, randomise_statistics
from little_networks import STRUCTURES, Net, conv
from torch import nn

import bpl
from bpl.diversity import FORMS, _JoinedCosine, cosine, feature_maps, filter_loss, signed
from bpl.methods.bpl import partner_cosine
from bpl.methods.held_norms import branch_kernels, kernel_norm
from bpl.partner import partner_blocks
from bpl.pruning import MaskHolder

KERNEL_FORMS = [form for form in FORMS if not form.startswith("feature")]
SIZE = 8


def model_with(relation: str) -> nn.Module:
    """Two partner blocks of two stages whose partners' kernels are opposite, orthogonal or equal to the originals'."""
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 6, stride=2), nn.BatchNorm2d(6)).double()
    bpl.grow_partners(model)
    for block in partner_blocks(model).values():
        one, other = (branch.conv.weight.data for branch in block.branches)
        if relation == "orthogonal":  # filter by filter: rows of an orthogonal basis
            basis = torch.linalg.qr(torch.randn(one[0].numel(), 2 * len(one), dtype=torch.float64)).Q.T
            one.copy_(basis[: len(one)].view_as(one))
            other.copy_(basis[len(one) :].view_as(one))
        else:
            other.copy_({"equal": 3, "opposite": -3}[relation] * one)
    return model


def value(model: nn.Module, form: str) -> float:
    with bpl.record_outputs(model):
        if form.startswith("feature"):
            model.train()(images(size=SIZE))
        return float(bpl.diversity_loss(model, form).detach())


@pytest.mark.parametrize(("relation", "cosine_of"), [("equal", 1), ("orthogonal", 0), ("opposite", -1)])
@pytest.mark.parametrize("form", KERNEL_FORMS)
def test_values_by_hand(form, relation, cosine_of):
    stages = 2 if form.startswith("stage") else 1  # a sum over stages, or a mean over blocks
    expected = stages * (cosine_of + 1 if form.endswith("cosine") else cosine_of**2)
    assert value(model_with(relation), form) == pytest.approx(expected, abs=1e-9)


def test_where_the_released_loss_is_smallest_a_block_is_one_branch():
    """(gamma_1 - gamma_2) z_hat + beta_1 + beta_2, in training mode: what the page on the loss says (eq-one-branch)."""
    model = randomise_statistics(model_with("opposite")).train()
    assert value(model, "stage-cosine") == pytest.approx(0, abs=1e-9)
    block = next(iter(partner_blocks(model).values()))
    x = images(size=SIZE)
    one, other = block.branches
    for branch in block.branches:
        branch.norm.eps = 1e-30  # of no account where a map's variance is large
    z_hat = (one(x) - one.norm.bias[:, None, None]) / one.norm.weight[:, None, None]
    scale, shift = one.norm.weight - other.norm.weight, one.norm.bias + other.norm.bias
    torch.testing.assert_close(block(x), scale[:, None, None] * z_hat + shift[:, None, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["feature-cosine", "feature-squared"])
def test_equal_branches_have_equal_features(form):
    model = model_with("equal")
    for block in partner_blocks(model).values():
        block.branches[1].load_state_dict(block.branches[0].state_dict())
    assert value(model, form) == pytest.approx({"feature-cosine": 2, "feature-squared": 1}[form], abs=1e-6)


def test_feature_forms_are_means_over_blocks_and_filters_of_what_the_branches_emit():
    model = randomise_statistics(bpl.grow_partners(Net())).double().train()
    seen = []
    for block in partner_blocks(model).values():
        for branch in block.branches:
            branch.register_forward_hook(lambda _m, _x, out: seen.append(out.detach()))
    got = value(model, "feature-cosine")
    terms = []
    for a, b in zip(seen[::2], seen[1::2], strict=True):
        for n in range(a.shape[1]):
            x, y = a[:, n].flatten(), b[:, n].flatten()
            terms.append(float(x @ y / (x.norm() * y.norm())) + 1)
    assert got == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_the_released_form_joins_all_kernels_of_a_stage():
    model = bpl.grow_partners(bpl.build_model("resnet18", 5, 64, width=4)).double()
    expected = 0.0
    for stage in ("conv1", "layer1", "layer2", "layer3", "layer4"):  # a 3 x 3 stem has a partner too, and a stride
        blocks = [b for name, b in partner_blocks(model).items() if name.split(".")[0] == stage]
        one, other = (torch.cat([b.branches[i].conv.weight.flatten() for b in blocks]).detach() for i in (0, 1))
        expected += float(torch.cosine_similarity(one, other, dim=0)) + 1
    assert value(model, "stage-cosine") == pytest.approx(expected, abs=1e-9)


def test_it_starts_near_four_for_the_four_stages_of_resnet50():
    model = bpl.grow_partners(bpl.build_model("resnet50", 21, 256, width=16))
    assert value(model, "stage-cosine") == pytest.approx(4.0, abs=0.1)
    assert value(model, "stage-squared") == pytest.approx(0.0, abs=3e-3)


def test_folding_sees_the_normalisation():
    model = model_with("equal")
    with torch.no_grad():
        for block in partner_blocks(model).values():
            block.branches[1].norm.weight.neg_()
    assert value(model, "filter-cosine") == pytest.approx(2)
    assert value(model, "folded-cosine") == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("form", KERNEL_FORMS)
def test_gradients_of_kernel_forms_are_those_of_finite_differences(form):
    """Those of the gradients too: what a penalty on gradients, or a step that looks ahead, goes by."""
    model = randomise_statistics(bpl.grow_partners(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4))).double())
    model.append(bpl.grow_partners(nn.Sequential(conv(4, 2, stride=2), nn.BatchNorm2d(2))).double())
    names = [n for n, _ in model.named_parameters() if n.endswith(("conv.weight", "norm.weight"))]
    values = [model.get_parameter(n).detach().clone().requires_grad_() for n in names]

    class Loss(nn.Module):  # functional_call swaps parameters in for one call
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return bpl.diversity_loss(self.model, form)

    def loss(*parameters):
        swapped = {f"model.{n}": p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Loss(), swapped, ())

    assert torch.autograd.gradcheck(loss, values, eps=1e-6, atol=1e-7)
    assert torch.autograd.gradgradcheck(loss, values, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["feature-cosine", "feature-squared"])
def test_gradients_of_feature_forms_are_those_of_finite_differences(form):
    model = bpl.grow_partners(nn.Sequential(conv(1, 2, 2), nn.BatchNorm2d(2))).double().train()
    x = images(2, 3)[:, :1]
    weights = [branch.conv.weight.detach().clone().requires_grad_() for branch in model[0].branches]

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            with bpl.record_outputs(self.model):
                self.model(x)
                return bpl.diversity_loss(self.model, form)

    def loss(one, other):
        swapped = {"model.0.branches.0.conv.weight": one, "model.0.branches.1.conv.weight": other}
        return torch.func.functional_call(Loss(), swapped, ())

    assert torch.autograd.gradcheck(loss, weights, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_both_branches_of_every_block(form):
    model = randomise_statistics(bpl.grow_partners(Net())).train()
    with bpl.record_outputs(model):
        model(images(size=SIZE, dtype=torch.float32))
        bpl.diversity_loss(model, form).backward()
    for block in partner_blocks(model).values():
        for branch in block.branches:
            gradient = branch.conv.weight.grad
            assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("form", [form for form in FORMS if form.endswith("cosine")])
def test_descending_drives_the_branches_apart(form):
    model = model_with("equal")
    with torch.no_grad():
        for block in partner_blocks(model).values():
            block.branches[1].conv.weight.add_(0.1 * torch.randn_like(block.branches[1].conv.weight))
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    start = value(model, form)
    for _ in range(10):
        with bpl.record_outputs(model):
            if form.startswith("feature"):
                model.train()(images(size=SIZE))
            bpl.diversity_loss(model, form).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert value(model, form) < start - 0.1


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("form", FORMS)
def test_removing_masked_filters_changes_no_form(form, scope):
    model = randomise_statistics(bpl.grow_partners(STRUCTURES["ResidualBeforeRelu"]())).double().train()
    masks = bpl.prune_masks(model, 0.6, scope=scope)
    holder = MaskHolder(model, masks, readers=True)  # weights that read a removed channel are gone too
    holder.apply()
    losses = []
    for network in (copy.deepcopy(model), bpl.slim(model, masks)):
        with bpl.record_outputs(network):
            network(images(4, SIZE))
            losses.append(float(bpl.diversity_loss(network, form).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6 if form.startswith("feature") else 1e-9)


@pytest.mark.parametrize("form", KERNEL_FORMS)
def test_the_memory_format_does_not_matter(form):
    model = randomise_statistics(bpl.grow_partners(STRUCTURES["InvertedResidual"]())).double()
    expected = value(model, form)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    mixed = copy.deepcopy(model)
    for block in partner_blocks(mixed).values():
        block.branches[1].to(memory_format=torch.channels_last)
    assert value(last, form) == pytest.approx(expected, rel=1e-12)
    assert value(mixed, form) == pytest.approx(expected, rel=1e-12)


def test_a_fully_masked_pair_has_cosine_zero_and_finite_gradients():
    zero, other = torch.zeros(3, 5, requires_grad=True), torch.randn(3, 5)
    assert (cosine(zero, zero) == 0).all() and (cosine(zero, other) == 0).all()
    cosine(zero, zero).sum().backward()
    assert zero.grad.isfinite().all()
    joined = _JoinedCosine.apply(1, zero, zero.detach().clone())
    joined.backward()
    assert joined == 0 and zero.grad.isfinite().all()


def test_outputs_are_kept_within_the_context_and_in_training_mode_only():
    model = bpl.grow_partners(Net())
    blocks = partner_blocks(model).values()
    x = images(size=SIZE, dtype=torch.float32)
    model.train()(x)
    assert not any(block.outputs for block in blocks)
    with pytest.raises(RuntimeError, match="stop here"), bpl.record_outputs(model):
        model.eval()(x)
        assert not any(block.outputs for block in blocks)
        model.train()(x)
        assert all(len(block.outputs) == 2 for block in blocks)
        raise RuntimeError("stop here")
    assert not any(block.outputs or block.keep_outputs for block in blocks)


def test_a_form_on_features_without_features_says_what_it_needs():
    model = bpl.grow_partners(Net())
    with pytest.raises(RuntimeError, match="bpl.record_outputs"):
        bpl.diversity_loss(model, "feature-cosine")


def test_an_unknown_form_is_named_with_what_is_allowed():
    with pytest.raises(ValueError, match="unknown diversity form 'cos': allowed are stage-cosine, stage-squared, "):
        bpl.diversity_loss(bpl.grow_partners(Net()), "cos")


def test_a_network_without_partners_is_told_how_to_get_them():
    with pytest.raises(ValueError, match="Net has no partners: call bpl.grow_partners first"):
        bpl.diversity_loss(Net())


@pytest.mark.parametrize("form", ["stage-cosine", "stage-squared", "layer-cosine", "filter-squared"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_do_not_leave_the_range_of_their_type(form, dtype):
    torch.manual_seed(0)
    model = bpl.grow_partners(bpl.build_model("resnet18", 5, 64, 64)).to(dtype)
    expected = bpl.diversity_loss(copy.deepcopy(model).float(), form)
    loss = bpl.diversity_loss(model, form)
    assert float(loss) == pytest.approx(float(expected), abs=1e-4)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_context_within_another_leaves_the_outer_one_recording():
    model = bpl.grow_partners(Net()).train()
    with bpl.record_outputs(model):
        with bpl.record_outputs(model):
            pass
        model(images(size=SIZE, dtype=torch.float32))
        assert float(bpl.diversity_loss(model, "feature-cosine").detach()) >= 0
    model(images(size=SIZE, dtype=torch.float32))
    with pytest.raises(RuntimeError, match="no outputs are recorded"):
        bpl.diversity_loss(model, "feature-cosine")


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith(("filter", "folded"))])
def test_a_block_without_a_live_filter_has_no_loss(form):
    model = bpl.grow_partners(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    for block in partner_blocks(model).values():
        for branch in block.branches:
            nn.init.zeros_(branch.conv.weight)
    assert float(bpl.diversity_loss(model, form).detach()) == 0


def test_a_filter_whose_partner_alone_is_masked_is_left_out():
    a, b = torch.eye(3), torch.eye(3)
    b[2] = 0
    assert float(filter_loss([[(a, b)]], signed)) == 2.0


def test_features_of_half_precision_are_summed_in_single():
    (block,) = partner_blocks(bpl.grow_partners(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)))).values()
    block.outputs = [torch.full((1, 3, 2, 2), 3e4, dtype=torch.float16)] * 2
    assert all(maps.dtype == torch.float32 for maps in feature_maps(block))


def test_the_recorded_cosine_is_a_mean_over_blocks_and_the_norm_a_root_mean_square():
    layers = (nn.Conv2d(1, 1, 2), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 2), nn.BatchNorm2d(1))
    model = bpl.grow_partners(nn.Sequential(*layers))
    kernels = ([3.0, 0, 0, 0], [6.0, 0, 0, 0], [5.0, 0, 0, 0], [0, 1.0, 0, 0])
    for weight, values in zip(branch_kernels(model), kernels, strict=True):
        weight.data = torch.tensor(values).view(1, 1, 2, 2)
    assert partner_cosine(model) == pytest.approx(0.5)  # of 1 and 0
    assert kernel_norm(model) == pytest.approx(((9 + 36 + 25 + 1) / 4) ** 0.5)
