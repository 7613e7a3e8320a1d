"""The distillation loss: by its definition, by its closed-form gradient, by finite differences, at its limits."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from bpl.distill import distillation_loss

TEMPERATURES = [0.5, 1.0, 4.0]


def logits(batch: int = 5, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * torch.randn(batch, classes), 3 * torch.randn(batch, classes)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_is_the_divergence_from_the_teacher_averaged_over_the_batch(temperature):
    student, teacher = logits()
    q, p = (softmax(x.double().numpy() / temperature, axis=1) for x in (student, teacher))
    expected = temperature**2 * rel_entr(p, q).sum(1).mean()
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_its_gradient_is_temperature_times_the_difference_of_the_softened_probabilities(temperature):
    student, teacher = logits()
    student.requires_grad_()
    distillation_loss(student, teacher, temperature).backward()
    with torch.no_grad():
        difference = torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1)
    torch.testing.assert_close(student.grad, temperature * difference / len(student), rtol=1e-4, atol=1e-6)


def test_its_gradients_are_those_of_finite_differences_for_both_sides(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # single precision hides small differences
    student, teacher = (x.double().requires_grad_() for x in logits(3, 4))
    assert torch.autograd.gradcheck(lambda s, t: distillation_loss(s, t, 2.0), (student, teacher))


def test_it_is_zero_where_the_distributions_are_equal_and_positive_elsewhere():
    student, teacher = logits()
    assert float(distillation_loss(teacher + 5, teacher, 4.0)) == pytest.approx(0, abs=1e-5)  # a shift is no difference
    assert float(distillation_loss(student, teacher, 4.0)) > 0.1


def test_at_a_high_temperature_it_matches_the_logits():
    """Hinton et al. 2015, section 2.1: half the mean squared difference of the logits, each image's mean removed."""
    student, teacher = logits()
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = 0.5 * centred.square().mean(1).mean()
    assert float(distillation_loss(student, teacher, 300.0)) == pytest.approx(float(expected), rel=0.02)


def test_the_size_of_its_gradients_hardly_depends_on_the_temperature():
    student, teacher = (x / 3 for x in logits())
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        student = student.detach().requires_grad_()
        distillation_loss(student, teacher, temperature).backward()
        sizes.append(float(student.grad.norm()))
    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_a_finite_loss_in_single_precision(dtype):
    student = torch.tensor([[3e4, -3e4, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-3e4, 3e4, 0.0]], dtype=dtype)
    loss = distillation_loss(student, teacher, 1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert np.isfinite(loss.item()) and student.grad.isfinite().all()
