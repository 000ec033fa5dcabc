"""A frozen teacher inside a module that trains: eval, without gradients, absent from checkpoints."""

import pytest
import torch
from torch import nn

from lightning_modules.networks.frozen import FrozenNetwork


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)

    def twice(self, x, plus=0.0):
        return self.layers(self.layers(x)) + plus


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 3)
        self.teacher = FrozenNetwork(Teacher())


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """Taken past the wrapper, whose own state_dict is empty."""
    return {key: value.clone() for key, value in module.teacher.network.state_dict().items()}


def assert_unchanged(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = module.teacher.network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())


def test_it_stays_in_eval_whatever_the_modules_around_it_do():
    student = Student().train()
    assert student.training and not any(module.training for module in student.teacher.modules())
    student.eval().train()
    student.teacher.train()
    assert not any(module.training for module in student.teacher.modules())


def test_training_around_it_leaves_it_bit_identical():
    student = Student().train()
    before = snapshot(student)
    optimizer = torch.optim.SGD((p for p in student.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
    x = torch.randn(8, 3)
    for _ in range(3):
        optimizer.zero_grad()
        (student.network(x) - student.teacher(x)).square().sum().backward()
        optimizer.step()
    assert_unchanged(student, before)
    assert not any(parameter.requires_grad for parameter in student.teacher.parameters())


def test_it_is_called_without_gradients_by_any_method():
    student, x = Student(), torch.randn(4, 3, requires_grad=True)
    assert not student.teacher(x).requires_grad
    expected = student.teacher.network.twice(x, plus=1.0)
    torch.testing.assert_close(student.teacher(x, plus=1.0, method="twice"), expected.detach())


def test_it_is_absent_from_the_state_dict_of_whatever_holds_it():
    assert set(Student().state_dict()) == {"network.weight", "network.bias"}
    nested = nn.ModuleDict({"outer": Student()})
    assert set(nested.state_dict()) == {"outer.network.weight", "outer.network.bias"}
    assert Student().teacher.state_dict() == {}


@pytest.mark.parametrize("strict", [True, False])
def test_loading_a_checkpoint_asks_nothing_of_it_and_leaves_it_bit_identical(strict):
    trained, student = Student(), Student()
    before, checkpoint = snapshot(student), trained.state_dict()
    result = student.load_state_dict(checkpoint, strict=strict)
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(student.network.weight, trained.network.weight)
    assert_unchanged(student, before)
    assert set(checkpoint) == {"network.weight", "network.bias"}, "the caller's checkpoint is not added to"


def test_a_checkpoint_with_other_teacher_weights_does_not_reach_it():
    student = Student()
    before = snapshot(student)
    foreign = {f"teacher.network.{key}": torch.full_like(value, 7) for key, value in before.items()}
    student.load_state_dict(student.state_dict() | foreign)
    assert_unchanged(student, before)


def test_a_strict_load_still_misses_what_the_student_lacks():
    with pytest.raises(RuntimeError, match=r"network\.bias"):
        Student().load_state_dict({"network.weight": torch.zeros(3, 3)})
