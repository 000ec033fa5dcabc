"""A frozen clip teacher and a streaming student that learns from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from datamodules.errors import UserError
from datamodules.sampling.samplers import Request
from datamodules.sampling.windows import WindowDataset, annotated_samples
from lightning_modules.base import TrainingSettings
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.distillation_terms import ActionTerm, AttentionTerm, BoxTerm, Lesson
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.students.trunk import EncodedFrames
from lightning_modules.networks.weights.card import Card
from lightning_modules.networks.weights.loading import load_exactly, read_state_dict, save_weights
from lightning_modules.networks.weights.student_start import student_from_teacher
from lightning_modules.stream_detection import StreamDetectionModule
from lightning_modules.stream_distillation import DistillationModule, WeightingSettings
from tests.lightning_modules import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    save_weights(tiny.teacher(seed=3).state_dict(), folder / "teacher.pt")
    return folder


@pytest.fixture(scope="module")
def source(folder):
    return tiny.videos(folder)


@pytest.fixture(scope="module")
def data(source, folder):
    data = tiny.streams(source, folder / "cache")
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def distil(folder):
    """A function that makes the module."""

    def make(**changes) -> DistillationModule:
        settings = {"network": tiny.student(), "teacher": tiny.teacher(), "teacher_weights": str(folder / "teacher.pt")}
        settings["optimizer"] = lambda groups: torch.optim.AdamW(groups, lr=3e-3)
        settings |= changes
        teacher = settings.pop("teacher")
        return DistillationModule(teacher=lambda _: teacher, **settings)

    return make


def whole_dataset(data, window) -> WindowDataset:
    """All training windows of a shape, untransformed."""
    videos = data.videos("train")
    return WindowDataset(videos, annotated_samples(videos, 1), window, data.num_classes, data.store)


def seen_by_the_teacher(module: DistillationModule, batch) -> torch.Tensor:
    """The normalised clips (B L, 3, T, H, W) that the teacher is asked about."""
    clips = []
    answer = module.teacher.network.outputs

    def remember(asked, *args, **kwargs):
        clips.append(asked)
        return answer(asked, *args, **kwargs)

    module.teacher.network.outputs = remember
    ask(module, batch)
    (asked,) = clips
    return asked


def ask(module: DistillationModule, batch) -> None:
    shown = batch.exists.flatten().nonzero()[:, 0]
    module.ask_teacher(batch, normalise_frames(batch.frames, batch.image_sizes), shown)


@pytest.mark.slow
def test_the_loss_of_a_repeated_batch_falls(data, distil, tmp_path):
    batch, losses = next(iter(data.train_dataloader())), tiny.Losses()
    trainer = tiny.trainer(tmp_path, max_epochs=1, callbacks=[losses])
    module = distil(weighting=WeightingSettings("fixed"), start_from=None)
    trainer.fit(module, datamodule=tiny.Repeated(batch, steps=30))
    assert losses.values[-1] < 0.6 * losses.values[0]  # truth and a random teacher want different things


@pytest.mark.slow
def test_the_teacher_is_the_same_after_an_epoch_and_not_in_the_checkpoint(data, distil, tmp_path):
    module = distil()
    before = {name: value.clone() for name, value in module.teacher.network.state_dict().items()}
    student = {name: value.clone() for name, value in module.network.state_dict().items()}
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=data)
    after = module.teacher.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not module.teacher.network.training
    assert any(not torch.equal(student[name], value) for name, value in module.network.state_dict().items())

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith("teacher") for name in kept)
    assert {name.split(".")[0] for name in kept} == {"network", "task_weighting"}
    # The student alone can be taken out of it, and the experiment goes on from it.
    load_exactly(tiny.student(), read_state_dict(tmp_path / "last.ckpt"))
    tiny.trainer(tmp_path).test(distil(), datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_tasks_their_weights_and_the_terms_of_the_ground_truth_are_logged(data, distil, tmp_path):
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    trainer.fit(distil(), datamodule=tiny.Repeated(next(iter(data.train_dataloader())), steps=1))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tasks = ("detection", "features", "actions", "boxes")
    terms = {f"train/loss/detection/{name}" for name in ("person", "l1", "giou", "action")}
    assert (
        set(logged)
        == {"train/loss", *(f"train/loss/{t}" for t in tasks), *(f"train/weight/{t}" for t in tasks)} | terms
    )
    weights = {"detection": 1.0, "features": 5.0, "actions": 5.0, "boxes": 1.0}
    assert {task: logged[f"train/weight/{task}"] for task in tasks} == pytest.approx(weights)
    total = sum(logged[f"train/weight/{task}"] * logged[f"train/loss/{task}"] for task in tasks)
    total -= sum(np.log(weights[task]) for task in tasks[1:])  # the ground truth is not weighted
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)


def test_a_term_that_is_not_named_is_left_out(data, distil, tmp_path):
    module = distil(terms=[ActionTerm(2.0)], weighting=WeightingSettings("fixed"))
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=tiny.Repeated(next(iter(data.train_dataloader())), steps=1))
    assert "train/loss/features" not in trainer.callback_metrics
    assert "train/loss/boxes" not in trainer.callback_metrics
    assert "train/loss/actions" in trainer.callback_metrics


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"terms": [ActionTerm(), BoxTerm(), ActionTerm(2.0)]}, "two of actions"),
        ({"terms": [], "weighting": WeightingSettings(truth=0)}, "nothing to learn"),
    ],
)
def test_terms_that_cannot_be_meant_are_refused(distil, changes, problem):
    with pytest.raises(ValueError, match=problem):
        distil(**changes)


def test_a_narrower_student_learns_features_through_maps_that_are_trained_and_saved(data, distil, tmp_path):
    module = distil(network=tiny.student(dim=16), training=TrainingSettings(new_lr_multiplier=10.0))
    before = {name: value.clone() for name, value in module.beside.named_parameters()}
    assert [value.shape for value in before.values()] == [(32, 16, 1, 1)] * 4
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=tiny.Repeated(next(iter(data.train_dataloader())), steps=2))
    assert all(not torch.equal(before[name], value) for name, value in module.beside.named_parameters())
    rates = {id(part): group["lr"] for group in trainer.optimizers[0].param_groups for part in group["params"]}
    trunk = rates[id(module.network.trunk.patch_embed.proj.weight)]
    assert [rates[id(part)] / trunk for part in module.beside.parameters()] == pytest.approx([10.0] * 4)
    trainer.save_checkpoint(tmp_path / "narrow.ckpt")
    load_exactly(tiny.student(dim=16), read_state_dict(tmp_path / "narrow.ckpt"))
    fresh = distil(network=tiny.student(dim=16))
    tiny.trainer(tmp_path).test(fresh, datamodule=data, ckpt_path=tmp_path / "narrow.ckpt", verbose=False)
    assert torch.equal(fresh.beside["features"].projections[0].weight, module.beside["features"].projections[0].weight)


def test_nothing_is_trained_beside_a_student_of_its_teachers_width(distil):
    assert not list(distil().beside.parameters())


def test_attention_of_another_number_of_heads_is_refused(distil):
    with pytest.raises(ValueError, match="has 4 heads and the teacher's 2; leave AttentionTerm out"):
        distil(network=tiny.student(num_heads=4), terms=[AttentionTerm()])


@pytest.mark.parametrize("terms", [None, [AttentionTerm()]], ids=["default", "attention"])
def test_a_shallower_student_learns_from_its_teacher(data, distil, tmp_path, terms):
    deep = tiny.teacher(seed=5, depth=4, pyramid_layers=[0, 1, 2, 3])
    save_weights(deep.state_dict(), tmp_path / "deep.pt")
    module = distil(teacher=deep, teacher_weights=str(tmp_path / "deep.pt"), terms=terms)
    losses = tiny.Losses()
    batch = next(iter(data.train_dataloader()))
    tiny.trainer(tmp_path, max_epochs=1, callbacks=[losses]).fit(module, datamodule=tiny.Repeated(batch, steps=2))
    assert all(np.isfinite(losses.values))


def test_a_weight_that_is_not_above_zero_is_refused():
    with pytest.raises(ValueError, match="weight of actions must be above 0, got 0"):
        ActionTerm(0)


@pytest.mark.parametrize(("keyframe", "past_frames"), [("middle", None), ("last", 4)])
def test_the_teacher_sees_the_clips_that_it_was_trained_on(data, distil, source, folder, keyframe, past_frames):
    """For each of the two keyframes of a window, what ``ClipDataModule`` would cut around it, pixel by pixel."""
    windows = whole_dataset(data, data.window)
    chosen = [1, 5, len(windows) - 1]  # the first and the last clip reach beyond their videos
    teacher = tiny.teacher(keyframe=keyframe)
    asked = seen_by_the_teacher(distil(teacher=teacher), windows[[Request(index, None) for index in chosen]])
    rows = [
        (video, frame - back) for video, frame in windows.samples[chosen].tolist() for back in (data.frame_stride, 0)
    ]
    clips = tiny.clips(source, folder / "cache", past_frames=past_frames)
    wanted = WindowDataset(windows.videos, np.asarray(rows), clips.window, data.num_classes, data.store)
    batch = wanted[[Request(index, None) for index in range(len(rows))]]
    expected = ClipDetectionModule._clips(batch.frames, batch.image_sizes)
    torch.testing.assert_close(asked, expected, rtol=0, atol=0)


def test_a_teacher_of_other_classes_is_refused_and_one_of_another_stride_is_told(data, distil, tmp_path):
    fits = Card({}, tuple(data.class_names), data.frame_stride, None, 64, "miniature", "0123abc")
    state, names = tiny.teacher(seed=3).state_dict(), fits.classes
    save_weights(state, tmp_path / "turned.pt", replace(fits, classes=names[::-1]))
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    with pytest.raises(UserError, match=rf"turned.pt knows other classes.*class 0 is {names[1]} there and {names[0]}"):
        trainer.fit(distil(teacher_weights=str(tmp_path / "turned.pt")), datamodule=data)
    save_weights(state, tmp_path / "slow.pt", replace(fits, frame_stride=8))
    module = distil(teacher_weights=str(tmp_path / "slow.pt"), weights=None)
    module.trainer = trainer
    trainer.datamodule = data
    with pytest.warns(UserWarning, match="was trained at a stride of 8 frames and is asked at a stride of 2"):
        module.setup("fit")


def test_weights_of_other_classes_are_told(data, tmp_path):
    names = tuple(data.class_names)
    card = Card({}, names[::-1], data.frame_stride, None, 64, "miniature", "0123abc")
    save_weights(tiny.student().state_dict(), tmp_path / "student.pt", card)
    module = StreamDetectionModule(tiny.student(), weights=str(tmp_path / "student.pt"))
    module.trainer = tiny.trainer(tmp_path)
    module.trainer.datamodule = data
    with pytest.warns(UserWarning, match=rf"student.pt knows other classes than the data: class 0 is {names[1]}"):
        module.setup("test")


def test_nothing_is_taught_before_the_start_of_a_video(data, distil, monkeypatch):
    """Where the first of two supervised frames would be before frame 0, the terms have the second alone."""
    batch = whole_dataset(data, data.window)[[Request(0, None), Request(3, None)]]
    assert batch.exists.tolist() == [[False, True], [True, True]] and not batch.annotated[0, 0]
    module, lessons = distil(terms=[BoxTerm(), ActionTerm()]), []
    monkeypatch.setattr(BoxTerm, "__call__", lambda self, lesson: lessons.append(lesson) or lesson.maps[0].sum())
    monkeypatch.setattr(type(module), "progress", 0.5)
    monkeypatch.setattr(type(module), "log_losses", lambda *_: None)
    monkeypatch.setattr(type(module), "log_dict", lambda *_, **__: None)
    module.training_step(batch, 0)
    (lesson,) = lessons
    frames = normalise_frames(batch.frames, batch.image_sizes)
    student = module.detect_supervised(batch, *module.encode(batch, frames))
    torch.testing.assert_close(lesson.student.boxes, student.boxes[:, 1:])
    assert [len(part) for part in (lesson.teacher.boxes[-1], lesson.maps[0], lesson.image_sizes)] == [3, 3, 3]


def test_tokens_of_a_frame_are_told_from_those_of_padding(distil):
    module, sizes = distil(), torch.tensor([[64, 96], [96, 65]])
    patch = module.network.patch_size
    outputs = module.teacher.network.outputs(torch.randn(2, 3, 4, 96, 96))
    lesson = Lesson(outputs, outputs, outputs.maps, sizes, (module.network, module.teacher.network), True)
    rows, columns = lesson.inside.any(2).sum(1) * patch, lesson.inside.any(1).sum(1) * patch
    assert rows.tolist() == [64, 96] and columns.tolist() == [96, 65 + -65 % patch]


@pytest.mark.parametrize("changes", [{"train_past_frames": 3}, {"train_future_frames": 0}])
def test_a_clip_that_reaches_outside_the_window_is_an_error_with_the_numbers_to_set(
    source, folder, data, distil, changes
):
    short = tiny.streams(source, folder / "cache", **changes)
    batch = whole_dataset(data, short.window)[[Request(3, None)]]
    module = distil()
    with pytest.raises(ValueError, match="outside the sample") as error:
        ask(module, batch)
    for advice in ("train_past_frames=4", "train_future_frames=1"):
        assert f"data.init_args.{advice}" in str(error.value)
    advised = tiny.streams(source, folder / "cache", train_past_frames=4, train_future_frames=1)
    ask(module, whole_dataset(data, advised.window)[[Request(3, None)]])  # and so it is enough


def test_a_student_starts_from_its_teacher_unless_told_otherwise(distil, tmp_path):
    weights = tiny.teacher(seed=3).backbone.norm.weight.half().float()
    own = tiny.student().head.decoder.blocks[0].attn.qkv.weight.clone()
    teacher = distil().teacher.network
    torch.testing.assert_close(teacher.backbone.norm.weight, weights, rtol=0, atol=0)
    started = distil().network.head.decoder.blocks[0].attn.qkv.weight
    torch.testing.assert_close(started, teacher.head.decoder.blocks[0].attn.qkv.weight, rtol=0, atol=0)
    fresh = distil(start_from=None).network.head.decoder.blocks[0].attn.qkv.weight
    torch.testing.assert_close(fresh, own, rtol=0, atol=0)
    twin = tiny.teacher(seed=8).state_dict()
    save_weights(twin, tmp_path / "twin.pt")
    module = distil(start_from=str(tmp_path / "twin.pt"))
    name = "head.decoder.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(module.network.state_dict()[name], twin[name].half().float(), rtol=0, atol=0)
    torch.testing.assert_close(module.teacher.network.backbone.norm.weight, weights, rtol=0, atol=0)


def test_a_student_whose_proposals_are_not_its_teachers_imitates_those_nearest(distil):
    assert distil().proposal_matching == "index"
    assert distil(network=tiny.student(num_proposals=3)).proposal_matching == "assignment"
    with pytest.raises(ValueError, match="index needs the teacher's"):
        distil(network=tiny.student(num_proposals=3), proposal_matching="index")


def test_what_is_imitated_is_the_teachers_in_the_order_of_the_assignment(distil):
    module = distil(network=tiny.student(num_proposals=3))
    torch.manual_seed(0)
    teacher = module.teacher.network.outputs(torch.randn(2, 3, 4, 64, 64))
    sizes = torch.tensor([[64, 64], [64, 64]])
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    order_of_boxes = order[None, ..., None].expand(1, -1, -1, 4)
    # All are persons to the teacher, none more than another to the student, so that the boxes alone decide.
    student = teacher._replace(
        boxes=teacher.boxes[-1:].gather(2, order_of_boxes), person_logits=torch.zeros(1, 2, 3, 2)
    )
    teacher = teacher._replace(person_logits=torch.tensor([9.0, -9.0]).expand_as(teacher.person_logits))
    networks = module.network, module.teacher.network
    found = Lesson(student, teacher, (), sizes, networks, same_order=False).imitated
    torch.testing.assert_close(found.boxes, student.boxes[-1])
    torch.testing.assert_close(
        found.action_logits, torch.stack([teacher.action_logits[-1, item, order[item]] for item in range(2)])
    )


@pytest.mark.slow
def test_a_student_with_a_cheaper_head_learns(data, distil, tmp_path):
    batch, losses = next(iter(data.train_dataloader())), tiny.Losses()
    student = tiny.student(num_proposals=3, num_actors=2)
    module = distil(network=student, weighting=WeightingSettings("fixed"), start_from=None)
    trainer = tiny.trainer(tmp_path, max_epochs=1, callbacks=[losses])
    trainer.fit(module, datamodule=tiny.Repeated(batch, steps=30))
    assert losses.values[-1] < 0.7 * losses.values[0]


def test_attention_teaches_the_trunk_and_not_the_head(data, distil, monkeypatch):
    module = distil(terms=[AttentionTerm()], weighting=WeightingSettings(truth=0))
    monkeypatch.setattr(type(module), "progress", 0.5)
    monkeypatch.setattr(type(module), "log_losses", lambda *_: None)
    monkeypatch.setattr(type(module), "log_dict", lambda *_, **__: None)
    torch.nn.init.normal_(module.network.trunk.blocks[0].mlp.fc1.weight)  # no longer the teacher's
    module.training_step(next(iter(data.train_dataloader())), 0).backward()
    learns = {name for name, part in module.network.named_parameters() if part.grad is not None and part.grad.any()}
    assert any(name.startswith("trunk.blocks.1.attention.attn.qkv") for name in learns)
    assert not any(name.startswith("head.") for name in learns)
    assert all(part.grad is None for part in module.teacher.parameters())


@torch.no_grad()
def test_a_student_that_localizes_in_the_next_frame_compares_features_of_the_pair_its_teacher_sees(data, distil):
    batch = next(iter(data.train_dataloader()))
    module = distil(network=tiny.student(look_ahead=1, boxes_from="next"))
    frames = normalise_frames(batch.frames, batch.image_sizes)
    embed = module.network.trunk.patch_embed
    size = tuple(frames.shape[-2:])
    grid = tuple(side // module.network.patch_size for side in size)
    tokens, _ = embed(frames, module.network.initial_state(len(frames), size).trunk.embedding)
    maps = tokens.transpose(2, 3).unflatten(3, grid)
    (compared,) = module.supervised_maps(EncodedFrames(tokens, (maps,), tokens), batch)
    # The teacher's keyframe opens the middle tubelet of its clip.
    pairs = [frames[:, keyframe : keyframe + 2].transpose(1, 2) for keyframe in batch.keyframes]
    expected = torch.stack([embed.proj(pair)[:, :, 0] for pair in pairs], dim=1).flatten(0, 1)
    torch.testing.assert_close(compared, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_average_of_weights_over_training_is_what_is_evaluated_and_kept(data, distil, tmp_path):
    """Lightning's callback, around a module that holds a frozen teacher."""
    module = distil()
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    callbacks = [EMAWeightAveraging(decay=0.5), checkpoint]
    trainer = tiny.trainer(tmp_path, max_epochs=1, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(module, datamodule=data)
    kept = read_state_dict(tmp_path / "last.ckpt")
    load_exactly(tiny.student(), kept)
    start = tiny.student()
    student_from_teacher(start, module.teacher.network.state_dict())
    name = "head.decoder.blocks.0.attn.qkv.weight"
    current = torch.load(tmp_path / "last.ckpt", weights_only=True)["current_model_state"][f"network.{name}"]
    first = start.state_dict()[name]
    assert 0 < (kept[name] - first).norm() < (current - first).norm()
