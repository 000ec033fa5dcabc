"""Training a streaming detector on windows, and evaluating it on whole videos however they are cut into chunks."""

from itertools import pairwise

import lightning as L
import numpy as np
import pytest
import torch

from datamodules.annotations.few_labels import FewLabels
from datamodules.errors import UserError
from datamodules.sampling.collate import stack_frames
from datamodules.sampling.samplers import Request
from datamodules.sampling.windows import WindowDataset, annotated_samples
from lightning_modules.commands.score_boxes import score_file
from lightning_modules.networks.detection.outputs import Detections
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.layers.prepared import Preparable
from lightning_modules.networks.students.timing import Timing
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.stream_detection import DelayTraining, StreamDetectionModule
from tests.lightning_modules import tiny
from tests.networks.tiny import student_of

CUTS = [(1, 1), (3, 4), (8, 8)]
"""Lanes and frames of a chunk; there are four videos of different lengths to stream."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def source(folder):
    return tiny.videos(folder)


@pytest.fixture(scope="module")
def training_batch(source, folder):
    data = tiny.streams(source, folder / "cache")
    data.prepare_data()
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def module(temporal: str = "dsta", **changes) -> StreamDetectionModule:
    network = tiny.student(temporal, **changes)
    tiny.place_proposals(network)
    return StreamDetectionModule(network)


def test_a_step_for_several_delays_has_the_losses_of_networks_with_these_delays(training_batch):
    """Of two delays there is but one pair; the late prediction teaches nothing that the early one knows already."""
    several = StreamDetectionModule(tiny.student(look_ahead=0), delay_training=DelayTraining([0, 1], imitation=3.0))
    frames = normalise_frames(training_batch.frames, training_batch.image_sizes)
    losses = several.losses_of_two_delays(training_batch, frames, several.delay_training)
    assert several.network.timing == Timing(look_ahead=0)
    expected, outputs = {}, {}
    for delay in (0, 1):
        alone = StreamDetectionModule(tiny.student(look_ahead=delay))
        outputs[delay] = alone.detect_supervised(training_batch, *alone.encode(training_batch, frames))
        expected[delay] = alone.losses(training_batch, outputs[delay])
    for name in ("person", "l1", "giou", "action"):
        assert losses[name].item() == pytest.approx((expected[0][name].item() + expected[1][name].item()) / 2, rel=1e-4)
    late = outputs[1].action_logits[-1]
    taught = 3.0 * several.imitation(outputs[0].action_logits, late, outputs[1].person_logits[-1].softmax(-1)[..., 0])
    assert losses["late"].item() == pytest.approx(taught.item(), rel=1e-3)
    assert losses["late"] > 0
    mean = (expected[0]["total"] + expected[1]["total"]).item() / 2
    assert losses["total"].item() == pytest.approx(mean + taught.item(), rel=1e-4)


def test_what_the_late_prediction_teaches_has_no_gradient_of_its_own(training_batch):
    several = StreamDetectionModule(tiny.student(), delay_training=DelayTraining([0, 1]))
    frames = normalise_frames(training_batch.frames, training_batch.image_sizes)
    several.losses_of_two_delays(training_batch, frames, several.delay_training)["late"].backward()
    assert any(part.grad is not None and part.grad.any() for part in several.network.head.decoder.parameters())
    learns = [name for name, part in several.network.named_parameters() if part.grad is not None and part.grad.any()]
    assert not any("localizer.stages" in name and "class_logits" in name for name in learns)


def test_the_late_prediction_teaches_nothing_before_the_start_of_a_video(source, folder):
    """Where the first of two supervised frames would be before frame 0, it teaches about the second alone."""
    data = tiny.streams(source, folder / "cache")
    data.prepare_data()
    data.setup("fit")
    videos = data.videos("train")
    windows = WindowDataset(videos, annotated_samples(videos, 1), data.window, data.num_classes, data.store)
    batch = windows[[Request(0, None), Request(3, None)]]
    assert batch.exists.tolist() == [[False, True], [True, True]]
    several = StreamDetectionModule(tiny.student(), delay_training=DelayTraining([0, 1], imitation=3.0))
    frames = normalise_frames(batch.frames, batch.image_sizes)
    losses = several.losses_of_two_delays(batch, frames, several.delay_training)
    outputs = []
    for delay in (0, 1):
        alone = StreamDetectionModule(tiny.student(look_ahead=delay))
        outputs.append(alone.detect_supervised(batch, *alone.encode(batch, frames)).of(torch.tensor([1, 2, 3])))
    early, late = outputs
    persons = late.person_logits[-1].softmax(-1)[..., 0]
    taught = 3.0 * several.imitation(early.action_logits, late.action_logits[-1], persons)
    assert losses["late"].item() == pytest.approx(taught.item(), rel=1e-3)


def test_every_delay_but_the_longest_is_drawn_beside_it():
    torch.manual_seed(0)
    drawn = [DelayTraining([2, 0, 3, 1]).draw() for _ in range(40)]
    assert set(drawn) == {(3, 0), (3, 1), (3, 2)}


@pytest.mark.parametrize("delays", [[], [2], [1, 1], [-1, 0]])
def test_delays_that_cannot_be_trained_are_refused(delays):
    with pytest.raises(ValueError, match="delays must be two or more different numbers of frames"):
        DelayTraining(delays)
    with pytest.raises(ValueError, match="needs a look_ahead of at least 1, got 0"):
        network = tiny.student(look_ahead=1, boxes_from="next")
        StreamDetectionModule(network, delay_training=DelayTraining([0, 1]))


def test_a_delay_to_be_evaluated_with_is_one_of_those_trained():
    with pytest.raises(UserError, match=r"are \[2, 3\], and the network is evaluated with a delay of 0"):
        StreamDetectionModule(tiny.student(), delay_training=DelayTraining([2, 3]))


def test_windows_without_labels_are_refused_where_nothing_learns_from_them(source, folder, tmp_path):
    data = tiny.streams(FewLabels(source, labelled_videos=0.5), folder / "cache", unlabelled_share=0.5)
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    with pytest.raises(UserError, match=r"data.unlabelled: StreamDetectionModule as configured learns from labels"):
        trainer.fit(module(), datamodule=data)
    taught = StreamDetectionModule(tiny.student(), delay_training=DelayTraining([0, 1]))
    assert taught.learns_without_labels and not module().learns_without_labels


class PreparedBetweenSteps(L.Callback):
    """Measures in the middle of training, as a monitor of the cost does, and looks at what is kept afterwards."""

    def __init__(self):
        self.kept = []

    def _count(self, network):
        self.kept.append(sum(part._kept is not None for part in network.modules() if isinstance(part, Preparable)))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.benchmark()
        self._count(pl_module.network)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._count(pl_module.network)


def test_what_a_measurement_keeps_of_the_weights_is_forgotten_when_they_change(training_batch, tmp_path):
    callback = PreparedBetweenSteps()
    trainer = tiny.trainer(tmp_path, max_epochs=1, callbacks=[callback])
    trainer.fit(module(), datamodule=tiny.Repeated(training_batch, steps=2))
    before, after, *rest = callback.kept
    assert before > 10 and after == 0 and rest == [before, 0]


def test_training_limited_by_time_alone_is_refused_in_words(training_batch, tmp_path):
    trainer = tiny.trainer(tmp_path, max_epochs=-1, max_time={"seconds": 1})
    with pytest.raises(UserError, match=r"trainer.max_epochs: the schedule .* how long training lasts; set it, or"):
        trainer.fit(module(), datamodule=tiny.Repeated(training_batch, steps=1))


def test_a_window_that_is_too_short_for_the_longest_delay_leaves_the_network_its_own(training_batch):
    several = StreamDetectionModule(tiny.student(), delay_training=DelayTraining([0, 5]))
    frames = normalise_frames(training_batch.frames, training_batch.image_sizes)
    with pytest.raises(ValueError, match="train_future_frames=5"):
        several.losses_of_two_delays(training_batch, frames, several.delay_training)
    assert several.network.look_ahead == 0


@pytest.mark.slow
@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_the_loss_of_a_repeated_batch_falls(training_batch, tmp_path, temporal):
    losses = tiny.Losses()
    student = StreamDetectionModule(tiny.student(temporal), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    trainer = tiny.trainer(tmp_path, max_epochs=1, callbacks=[losses])
    trainer.fit(student, datamodule=tiny.Repeated(training_batch, steps=30))
    assert losses.values[-1] < 0.4 * losses.values[0]


@pytest.mark.slow
@pytest.mark.parametrize(("temporal", "look_ahead"), [("tsa", 0), ("dsta", 0), ("dsta", 3)])
def test_accuracy_and_keyframes_are_the_same_however_videos_are_streamed(
    source, folder, tmp_path, temporal, look_ahead
):
    student, found = module(temporal, look_ahead=look_ahead), []
    for lanes, chunk_frames in CUTS:
        data = tiny.streams(source, folder / "cache", lanes=lanes, chunk_frames=chunk_frames)
        results = tiny.Results()
        (scores,) = tiny.trainer(tmp_path, callbacks=[results]).test(student, datamodule=data, verbose=False)
        # Every third frame is annotated and every second one streamed: no two annotations share a slot.
        annotated = sum(len(range(1, length, source.every)) for length in source.lengths[2:])
        assert int(results.result["num_frames"]) == annotated
        assert int(results.result["num_boxes"]) == 3 * annotated  # one box of one action, one of two
        found.append(scores["test/map"])
    assert 0 < found[0] < 1  # or the comparison would say nothing
    assert found == pytest.approx([found[0]] * len(CUTS), abs=1e-6)


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_tracked_map_is_that_of_what_predict_reports(source, folder, tmp_path, look_ahead):
    """The reference: the people of ``predict`` in a csv, scored as another program's would be."""
    student = module(look_ahead=look_ahead)
    data = tiny.streams(source, folder / "cache", lanes=3, chunk_frames=4)
    (scores,) = tiny.trainer(tmp_path).test(student, datamodule=data, verbose=False)
    batches, file = tiny.trainer(tmp_path).predict(student, datamodule=data), tmp_path / "people.csv"
    with file.open("w") as lines:
        for frame in (frame for batch in batches for frame in batch):
            height, width = frame.size
            for person in frame.people:
                box = np.asarray(person.box) / [width, height, width, height]
                for action, score in enumerate(person.actions.values(), 1):
                    lines.write(",".join(map(str, [frame.video_id, frame.seconds, *box, action, score])) + "\n")
    keyframes = data.true_keyframes("test")
    with pytest.warns(UserWarning, match="are left out"):  # frames without an annotation
        reference = score_file(file, keyframes, len(data.class_names)).result.mean
    assert scores["test/tracked_map"] == pytest.approx(reference, abs=1e-6)
    assert 0 < reference < 1 and reference != pytest.approx(scores["test/map"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("look_ahead", [0, 3])
def test_predictions_are_the_same_however_videos_are_streamed(source, folder, tmp_path, look_ahead):
    student, entries = module(look_ahead=look_ahead), {}
    for lanes, chunk_frames in CUTS:
        data = tiny.streams(source, folder / "cache", lanes=lanes, chunk_frames=chunk_frames)
        batches = tiny.trainer(tmp_path).predict(student, datamodule=data)
        entries[lanes] = {(e.video_id, round(e.seconds, 3)): e.people for batch in batches for e in batch}
    assert entries[1].keys() == entries[3].keys() == entries[8].keys()
    for key, alone in entries[1].items():
        for lanes in (3, 8):
            assert [person.track for person in entries[lanes][key]] == [person.track for person in alone]
            for one, other in zip(entries[lanes][key], alone, strict=True):
                assert one.box == pytest.approx(other.box, abs=1e-2)
                assert one.actions == pytest.approx(other.actions, abs=1e-4)
    assert sum(map(len, entries[1].values())) > 10  # or nothing was compared


def test_predictions_are_every_valid_frame_in_order_of_time(source, folder, tmp_path):
    data = tiny.streams(source, folder / "cache")
    batches = tiny.trainer(tmp_path).predict(module(), datamodule=data)
    entries = [entry for batch in batches for entry in batch]
    for number, length in list(enumerate(source.lengths))[2:]:
        times = [entry.seconds for entry in entries if entry.video_id == f"video_{number}"]
        assert len(times) == len(range(0, length, 2))
        assert all(earlier < later for earlier, later in pairwise(times))
    assert len(entries) == sum(len(range(0, length, 2)) for length in source.lengths[2:])  # no padding, no empty lane


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("lanes", "chunk_frames"), CUTS)
def test_the_last_frames_of_a_video_are_answered_as_if_its_last_one_went_on(source, folder, lanes, chunk_frames):
    student = module(look_ahead=2).eval()
    data = tiny.streams(source, folder / "cache", lanes=lanes, chunk_frames=chunk_frames)
    data.prepare_data()
    data.setup("predict")
    answers = [a for batch in data.predict_dataloader() for a in student.stream.add(batch)]
    assert student.stream.finish() == []
    for video in data.videos("predict"):
        own = [answer for answer in answers if answer.frame.video_id == video.video_id]
        frames, size = stack_frames([data.store.get(video.path, 2 * np.arange(len(own)))])
        frames = normalise_frames(frames, size)
        state, said = student.network.initial_state(1, tuple(frames.shape[-2:])), []
        for index in [*range(len(own)), len(own) - 1, len(own) - 1]:
            detections, state = student.network(frames[:, [index]], state, size)
            said.append(Detections(*(part[0] for part in detections)))
        for answer, late in zip(own, said[2:], strict=True):
            (expected,) = student.decode(late, size, answer.frame.original_size[None])
            torch.testing.assert_close(answer.found.boxes, expected.boxes, rtol=0, atol=1e-2)
            torch.testing.assert_close(answer.found.scores, expected.scores, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_scores_depend_on_the_past_of_the_stream(source, folder):
    """Otherwise the tests above would pass without a state."""
    student = module().eval()
    data = tiny.streams(source, folder / "cache", lanes=1, chunk_frames=1)
    data.setup("predict")
    differences = []
    with torch.no_grad():
        for batch in data.predict_dataloader():
            ((remembered,),) = student.stream.detect(batch)
            state, student.stream.state = (
                student.stream.state,
                student.network.initial_state(1, tuple(batch.frames.shape[-2:])),
            )
            ((forgotten,),) = student.stream.detect(batch)
            student.stream.state = state
            differences.append(float((remembered.scores - forgotten.scores).abs().max()))
    assert differences[0] == 0
    assert max(differences) > 1e-3


def test_an_evaluation_starts_from_nothing_whatever_ran_before(source, folder, tmp_path):
    student = module()
    data = tiny.streams(source, folder / "cache")
    first, second = (
        tiny.trainer(tmp_path).test(student, datamodule=data, verbose=False)[0]["test/map"] for _ in range(2)
    )
    assert first == second


def test_the_answer_that_is_trained_is_the_one_about_the_keyframe(training_batch):
    """With a look-ahead of one the keyframe's losses are those of the outputs one frame later."""
    student = module(look_ahead=1).eval()
    frames = normalise_frames(training_batch.frames, training_batch.image_sizes)
    state = student.network.initial_state(len(frames), tuple(frames.shape[-2:]))
    first, last = training_batch.keyframes[0], training_batch.keyframes[-1]
    with torch.no_grad():
        found = supervised_losses(student, training_batch)
        outputs, _ = student.network.outputs(
            frames[:, : last + 2], state, training_batch.image_sizes, last=last - first + 1, deep=True
        )
    torch.testing.assert_close(found, student.losses(training_batch, outputs))
    with pytest.raises(ValueError, match="train_future_frames=9"):
        supervised_losses(module(look_ahead=9), training_batch)


def supervised_losses(student: StreamDetectionModule, batch) -> dict[str, torch.Tensor]:
    encoded, state = student.encode(batch, normalise_frames(batch.frames, batch.image_sizes))
    return student.losses(batch, student.detect_supervised(batch, encoded, state))


def test_frames_after_the_last_keyframe_are_not_seen(training_batch):
    student = module().eval()
    blinded = training_batch.frames.clone()
    blinded[:, training_batch.keyframes[-1] + 1 :] = 255
    with torch.no_grad():
        seen, unseen = (
            supervised_losses(student, training_batch._replace(frames=frames))
            for frames in (training_batch.frames, blinded)
        )
    torch.testing.assert_close(unseen, seen, rtol=0, atol=0)


def test_no_arithmetic_of_a_student_is_published():
    assert module().benchmark().published_gflops is None


def test_keyframes_with_a_gap_between_them_are_refused(training_batch):
    with pytest.raises(ValueError, match=r"consecutive frames, got \(2, 4\)"):
        supervised_losses(module(), training_batch._replace(keyframes=(2, 4)))


def test_a_student_starts_from_a_clip_detectors_weights(tmp_path):
    save_weights(tiny.teacher(seed=7).state_dict(), tmp_path / "teacher.pt")
    student = StreamDetectionModule(tiny.student(), start_from=str(tmp_path / "teacher.pt")).network
    teacher = tiny.teacher(seed=7)
    half = teacher.backbone.blocks[1].attn.qkv.weight.half().float()
    torch.testing.assert_close(student.trunk.blocks[1].attention.attn.qkv.weight, half, rtol=0, atol=0)


def test_the_way_out_of_an_lstm_that_has_no_effect_yet_learns_from_the_first_step(training_batch):
    """A gate of zero behind a random map had next to no gradient, and stayed closed through whole trainings."""
    torch.manual_seed(0)
    student = StreamDetectionModule(student_of("dsta", tiny.SHAPES))
    supervised_losses(student, training_batch)["total"].backward()
    for block in student.network.trunk.blocks:
        assert block.attention.out_of_lstm.weight.abs().max() == 0
        assert block.attention.out_of_lstm.weight.grad.norm() > 1e-3 * block.attention.attn.proj.weight.grad.norm()


def test_a_checkpoint_from_before_detectors_were_made_of_parts_is_gone_on_from():
    module = StreamDetectionModule(tiny.student(seed=5))
    state = module.state_dict()
    old = {key.replace("network.head.", "network.").replace("network.trunk.", "network."): key for key in state}
    old = {key.replace(".attention.", ".temporal."): state[now] for key, now in old.items()}
    assert "network.blocks.0.temporal.attn.qkv.weight" in old and "network.localizer.proposal_boxes" in old
    checkpoint = {"state_dict": old}
    fresh = StreamDetectionModule(tiny.student(seed=6))
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"])
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    # The optimiser's state goes by the order of parameters, which is the same.
    assert list(checkpoint["state_dict"]) == list(state)
