"""A frozen motion teacher, and what learns from it."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_modules.motion_distillation import MotionDistillationModule
from lightning_modules.networks.weights.card import Card
from lightning_modules.networks.weights.loading import save_weights
from tests.lightning_modules import temporal, tiny
from tests.networks.temporal.temporal_parts import MeanColour


@pytest.fixture
def distil(tmp_path):
    """A function that makes the module. Student and teacher look at the same features, which is all the same here."""
    save_weights(temporal.detector(seed=5).state_dict(), tmp_path / "teacher.pt")

    def make(network=None, **changes) -> MotionDistillationModule:
        settings = {
            "teacher": lambda classes: temporal.detector(num_classes=classes),
            "teacher_weights": str(tmp_path / "teacher.pt"),
        }
        settings |= {"modality": "features", "teacher_modality": "features"}
        settings["optimizer"] = lambda groups: torch.optim.AdamW(groups, lr=1e-2)
        return MotionDistillationModule(network or temporal.decomposed(), **{**settings, **changes})

    return make


def ready(module, folder):
    """The module as training finds it, and a batch."""
    data = temporal.features(folder)
    trainer = tiny.trainer(folder, max_steps=1, limit_val_batches=0)
    module.optimizer = lambda groups: torch.optim.SGD(groups, lr=0.0)
    trainer.fit(module, datamodule=data)
    return module, next(iter(data.train_dataloader()))


def gradients(module, loss):
    """Return the parts of the network that a loss moves."""
    module.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name
        for name, part in module.network.named_children()
        if any(p.grad is not None and p.grad.any() for p in part.parameters())
    }


def test_the_motion_loss_moves_the_motion_branch_and_neither_appearance_nor_the_joint_head(distil, tmp_path):
    module, batch = ready(distil(), tmp_path)
    terms = module.losses(batch)
    motion = sum(value for name, value in terms.items() if name.startswith("motion/"))
    assert gradients(module, motion) == {"backbone", "motion_projection", "branch_head"}
    assert gradients(module, terms["motion/features"]) == {"backbone", "motion_projection"}


def test_ground_truth_reaches_the_motion_projection_through_the_joint_path_alone(distil, tmp_path):
    module, batch = ready(distil(), tmp_path)
    terms = module.losses(batch)
    appearance = sum(value for name, value in terms.items() if name.startswith("appearance/"))
    assert gradients(module, appearance) == {"backbone", "appearance_projection", "branch_head"}
    joint = sum(value for name, value in terms.items() if name.startswith("joint/"))
    assert "branch_head" not in gradients(module, joint) and "motion_projection" in gradients(module, joint)


def test_the_motion_branch_can_be_left_to_the_teacher_alone(distil, tmp_path):
    module, batch = ready(distil(temporal.decomposed(joint_moves_motion=False)), tmp_path)
    terms = module.losses(batch)
    joint = sum(value for name, value in terms.items() if name.startswith("joint/"))
    assert gradients(module, joint) == {"backbone", "appearance_projection", "fusion", "joint_head"}


def test_heads_start_as_the_teachers_reading_the_motion_branch(distil, tmp_path):
    module, _ = ready(distil(), tmp_path)
    taught, network = module.teacher.network.head.layer, module.network
    for layer in (network.branch_head.layer, network.joint_head.layer):
        assert torch.equal(layer.weight[:, :8], taught.weight) and torch.equal(layer.bias, taught.bias)
    assert not network.joint_head.layer.weight[:, 8:].any()
    alone, _ = ready(distil(heads_from_teacher=False), tmp_path)
    assert not torch.equal(alone.network.branch_head.layer.weight, taught.weight)
    plain, _ = ready(distil(temporal.detector(seed=2), strategy="conventional"), tmp_path)
    assert torch.equal(plain.network.head.layer.weight, taught.weight)


def test_the_total_is_the_truth_of_both_heads_and_the_weighted_imitation(distil, tmp_path):
    weights = {"features": 2.0, "segments": 0.5}
    module, batch = ready(distil(imitation_weights=weights), tmp_path)
    terms = module.losses(batch)
    truth = sum(terms[f"{branch}/{term}"] for branch in ("appearance", "joint") for term in ("classes", "reach"))
    expected = truth + 2 * terms["motion/features"] + 0.5 * terms["motion/segments"]
    torch.testing.assert_close(terms["total"], expected)


def test_the_teacher_is_bit_identical_after_an_epoch_and_not_in_the_checkpoint(distil, tmp_path):
    module, data = distil(), temporal.features(tmp_path)
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    for name, value in temporal.detector(seed=5).state_dict().items():
        assert torch.equal(module.teacher.network.state_dict()[name], value.half().float()), name
    keys = torch.load(tmp_path / "student.ckpt", weights_only=True)["state_dict"]
    assert not any(key.startswith("teacher") for key in keys)
    assert any(key.startswith("network.branch_head") for key in keys)


def test_evaluation_builds_neither_teacher_nor_branch_head(distil, tmp_path):
    module, data = distil(), temporal.features(tmp_path)
    trainer = tiny.trainer(tmp_path, max_epochs=2)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    (trained,) = trainer.validate(module, datamodule=data, verbose=False)

    def no_teacher(_):
        raise AssertionError("a teacher was built")

    alone = distil(teacher=no_teacher, teacher_weights=None)
    (tested,) = tiny.trainer(tmp_path).test(
        alone, datamodule=data, ckpt_path=tmp_path / "student.ckpt", verbose=False, weights_only=True
    )
    assert alone.teacher is None and alone.network.branch_head is None
    assert tested["test/map"] == trained["val/map"]


def test_training_goes_on_from_a_checkpoint(distil, tmp_path):
    data = temporal.features(tmp_path)
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    trainer.fit(distil(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    again = distil()
    tiny.trainer(tmp_path, max_epochs=2).fit(
        again, datamodule=data, ckpt_path=tmp_path / "student.ckpt", weights_only=True
    )
    assert again.trainer.current_epoch == 2 and again.network.branch_head is not None


class WithStatistics(MeanColour):
    """A backbone with buffers, as every one with batch norm has."""

    def __init__(self):
        super().__init__(temporal.CHANNELS)
        self.norm = torch.nn.BatchNorm1d(self.out_channels)

    def forward(self, steps, mask):
        return self.norm(super().forward(steps, mask))


def test_an_average_of_the_weights_has_the_parts_that_training_adds(distil, tmp_path):
    """With a decay of 0 it is the network after the last step, with branch head and statistics."""
    network, average = temporal.decomposed(), EMAWeightAveraging(decay=0.0)
    network.backbone = WithStatistics()
    module, data = distil(network), temporal.features(tmp_path)
    trainer = tiny.trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[average])
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "average.ckpt")
    state = torch.load(tmp_path / "average.ckpt", weights_only=True)["state_dict"]
    assert "network.branch_head.layer.weight" in state and "network.backbone.norm.running_mean" in state
    for name, value in module.state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("strategy", ["none", "conventional"])
def test_a_plain_detector_learns_with_or_without_a_teacher(distil, tmp_path, strategy):
    module, batch = ready(distil(temporal.detector(seed=2), strategy=strategy), tmp_path)
    terms = module.losses(batch)
    assert {"detection/classes", "detection/reach"} <= set(terms)
    assert any(name.startswith("motion/") for name in terms) == (strategy == "conventional")
    assert (module.teacher is not None) == (strategy == "conventional")


def test_without_a_teacher_nobody_reads_motion(distil, tmp_path):
    module, batch = ready(distil(strategy="none", teacher=None, teacher_modality="flow"), tmp_path)
    assert {name.partition("/")[0] for name in module.losses(batch)} == {"total", "appearance", "joint"}


@pytest.mark.slow
def test_the_loss_of_a_repeated_batch_falls(distil, tmp_path):
    data, losses = temporal.features(tmp_path), tiny.Losses()
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    trainer = tiny.trainer(tmp_path, max_epochs=1, callbacks=[losses])
    trainer.fit(distil(), datamodule=tiny.Repeated(batch, steps=80, num_classes=3))
    assert losses.values[-1] < 0.5 * losses.values[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": temporal.detector()}, "strategy: decomposed needs a DecomposedDetector as network"),
        ({"strategy": "conventional"}, "strategy: conventional needs a TemporalDetector as network"),
        ({"teacher": None}, "strategy: decomposed needs a teacher"),
        (
            {"strategy": "none", "network": temporal.decomposed(joint_moves_motion=False)},
            "joint_moves_motion: nothing would train the motion branch without a teacher",
        ),
        ({"imitation_weights": {"colour": 1.0}}, "imitation_weights: has colour; there are features, classes"),
    ],
)
def test_what_does_not_fit_together_is_refused(distil, changes, message):
    with pytest.raises(ValueError, match=message):
        distil(**changes)


def test_a_teacher_without_weights_is_refused_where_it_would_teach(distil, tmp_path):
    with pytest.raises(ValueError, match=r"model\.teacher_weights: .*set it to a check"):
        tiny.trainer(tmp_path, max_epochs=1).fit(distil(teacher_weights=None), datamodule=temporal.features(tmp_path))


def test_a_teacher_of_other_classes_is_refused(distil, tmp_path):
    card = Card({}, ("wave", "walk", "sit"), 1, None, None, "marked features", "0123abc")
    save_weights(temporal.detector().state_dict(), tmp_path / "turned.pt", card)
    with pytest.raises(ValueError, match=r"turned\.pt knows other classes than the data: class 0 is wave there"):
        ready(distil(teacher_weights=str(tmp_path / "turned.pt")), tmp_path)


def test_a_teacher_of_another_width_is_refused(distil, tmp_path):
    save_weights(temporal.detector(dim=5).state_dict(), tmp_path / "narrow.pt")
    module = distil(teacher=lambda _: temporal.detector(dim=5), teacher_weights=str(tmp_path / "narrow.pt"))
    with pytest.raises(ValueError, match="give both networks the same dim"):
        ready(module, tmp_path)
