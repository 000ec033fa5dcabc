"""The student against its teacher: what it starts from, what it equals untrained, and what its state weighs."""

import pytest
import torch
from torch import Tensor

from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.networks.weights.student_start import student_from_teacher
from tests.networks.tiny import CONFIG, randomise, student_of, tiny_student, tiny_teacher

SHARED = {key: value for key, value in CONFIG.items() if key not in ("keep_rates", "enhanced_weight", "key_order")}
HEIGHT, WIDTH = 64, 96
TEACHER_LIKE_AT_FIRST = [("dsta", {}), ("tsa", {"shift_mode": "concat_kv"})]


def pair(temporal: str, **changes) -> tuple[StreamingDetector, EvadTeacher]:
    """A student that was started from a random teacher without token dropout."""
    teacher = tiny_teacher(keep_rates={})
    student = student_of(temporal, SHARED | {"window": 3} | changes).eval()
    student_from_teacher(student, teacher.state_dict())
    return student, teacher


def still_scene(frames: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same picture in every frame of a stream (2, T, 3, H, W), and as a one-slot clip (2, 3, 2, H, W)."""
    picture = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    return picture[:, None].repeat(1, frames, 1, 1, 1), picture[:, :, None].repeat(1, 1, 2, 1, 1)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("temporal", "changes"), TEACHER_LIKE_AT_FIRST)
def test_an_untrained_student_has_the_token_maps_of_the_frame_wise_teacher(temporal, changes):
    student, teacher = pair(temporal, **changes)
    frames, clip = still_scene(frames=3)
    outputs, _ = student.outputs(frames, student.initial_state(2, (HEIGHT, WIDTH)))
    expected = teacher.backbone(clip).maps
    for ours, theirs in zip(outputs.maps, expected, strict=True):
        for t in range(3):  # in a still scene the frame before is the frame itself
            torch.testing.assert_close(ours.unflatten(0, (2, 3))[:, t], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("image_size", [(HEIGHT, WIDTH), (50, 90)])
@pytest.mark.parametrize(("temporal", "changes"), TEACHER_LIKE_AT_FIRST)
def test_an_untrained_student_detects_in_a_first_frame_what_the_teacher_does_in_a_still(temporal, changes, image_size):
    student, teacher = pair(temporal, **changes)
    frames, clip = still_scene(frames=1)
    sizes = torch.tensor([image_size] * 2)
    ours, _ = student(frames, student.initial_state(2, (HEIGHT, WIDTH)), sizes)
    theirs = teacher(clip, sizes)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one[:, 0], other, rtol=1e-4, atol=1e-4)


def test_without_a_memory_an_untrained_dsta_student_is_the_frame_wise_teacher_at_any_time():
    student, teacher = pair("dsta", window=0)
    pictures = torch.randn(1, 4, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    ours, _ = student(pictures, student.initial_state(1, (HEIGHT, WIDTH)))
    for t in range(4):
        theirs = teacher(pictures[:, [max(t - 1, 0), t]].transpose(1, 2))  # a slot of the newest two frames
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one[:, t], other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"look_ahead": 3, "boxes_from": "next", "keyframe_code": "answered"},
        {"look_ahead": 0, "boxes_from": "answered", "keyframe_code": "newest", "keyframe": "last"},
    ],
    ids=["late", "at_once"],
)
def test_with_the_slots_of_a_clip_only_attention_over_time_is_between_an_untrained_student_and_its_teacher(changes):
    """Without it, and without codes that tell slots apart in the trunk, the two say the same of every frame.

    At once, the teacher is one whose keyframe is the last of its clip.
    """
    student, _ = pair("dsta", window=6, memory_stride=2, memory_keep_rate=1.0, **changes)
    teacher = tiny_teacher(keep_rates={}, keyframe=changes.get("keyframe", "middle"))
    look_ahead = changes["look_ahead"]
    for network in (teacher.backbone, student.trunk):
        codes = network.positions.table.view(network.positions.num_slots, -1, network.positions.table.shape[-1])
        codes.copy_(codes[network.positions.keyframe_slot].clone().expand_as(codes))
    for block in teacher.backbone.blocks:
        for parameter in block.attn.proj.parameters():
            parameter.zero_()
    student_from_teacher(student, teacher.state_dict())
    frames = torch.randn(1, 12, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    ours, _ = student(frames, student.initial_state(1, (HEIGHT, WIDTH)))
    for newest in range(7, 12):
        clip = frames[:, newest - 7 : newest + 1].transpose(1, 2)
        assert teacher.keyframe_of(8) == 7 - look_ahead
        for one, other in zip(ours, teacher(clip), strict=True):
            torch.testing.assert_close(one[:, newest], other, rtol=1e-4, atol=1e-4)


def test_a_channel_shift_sees_zeros_before_the_first_frame():
    student, teacher = pair("tsa", shift_mode="channel")
    frames, clip = still_scene(frames=1)
    outputs, _ = student.outputs(frames, student.initial_state(2, (HEIGHT, WIDTH)))
    assert (outputs.maps[0] - teacher.backbone(clip).maps[0]).abs().max() > 1e-2


@pytest.mark.parametrize("temporal", ["dsta", "tsa"])
def test_every_weight_of_the_teacher_arrives_in_one_place_and_nothing_else_changes(temporal):
    teacher = tiny_teacher(keep_rates={}).state_dict()
    numbered = {key: torch.full_like(value, number) for number, (key, value) in enumerate(teacher.items(), start=1)}
    student = student_of(temporal, SHARED)
    fresh = {key: value.clone() for key, value in student.state_dict().items()}
    student_from_teacher(student, numbered)
    new_parts = ("temporal_norm", "into_lstm", ".lstm.", "out_of_lstm", "gate", "age_code", "past_code")
    arrived = []
    for key, value in student.state_dict().items():
        if any(part in key for part in new_parts):
            assert torch.equal(value, fresh[key]), key
        else:
            assert value.min() == value.max(), key
            arrived.append(value.flatten()[0].item())
    assert sorted(arrived) == list(range(1, len(teacher) + 1))


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"dim": 48}, "trunk.blocks.0.attention.attn.qkv.weight"),
        ({"num_classes": 3}, r"head.decoder.blocks.0.action_logits.bias: \(4,\) in the file, \(3,\) in the network"),
        ({"dim": 12, "localizer_roi_size": 2}, "localizer.stages.0.inst_interact.out_layer.weight"),
        ({"num_classes": 5}, r"head.decoder.blocks.0.action_logits.bias: \(4,\) in the file, \(5,\) in the network"),
        ({"depth": 6}, "missing .*blocks.5.mlp.fc1.bias"),
        ({"num_proposals": 7}, "head.localizer.proposal_boxes"),
        ({"num_stages": 4}, "missing .*localizer.stages.3"),
        ({"decoder_depth": 3}, "missing .*decoder.blocks.2"),
        ({"patch_size": 8}, "patch_embed.proj.weight"),
    ],
)
def test_sizes_that_disagree_are_an_error_that_lists_the_weights(changes, listed):
    student = student_of("dsta", SHARED | changes)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=listed):
        student_from_teacher(student, tiny_teacher(keep_rates={}).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize("changes", [{"num_frames": 4}, {"pretrain_size": 32}])
def test_learned_positions_of_another_clip_or_size_are_refused_and_not_thinned_out(changes):
    teacher = tiny_teacher(keep_rates={}, learned_positions=True)
    student = student_of("dsta", SHARED | {"window": 3, "learned_positions": True} | changes)
    with pytest.raises(ValueError, match=r"positions\.table"):
        student_from_teacher(student, teacher.state_dict())


@pytest.mark.parametrize("temporal", ["dsta", "tsa"])
def test_frames_need_not_be_square_nor_fill_the_padding(temporal):
    student = randomise(tiny_student(temporal))
    frames, sizes = torch.randn(2, 5, 3, 64, 96), torch.tensor([[50, 90], [64, 33]])
    detections, _ = student(frames, student.initial_state(2, (64, 96)), sizes)
    for item in range(2):
        alone, _ = student(frames[item : item + 1], student.initial_state(1, (64, 96)), sizes[item : item + 1])
        for ours, theirs in zip(detections, alone, strict=True):
            torch.testing.assert_close(ours[item : item + 1], theirs, rtol=1e-4, atol=1e-4)
    whole, _ = student(frames, student.initial_state(2, (64, 96)))
    assert (whole.boxes - detections.boxes).abs().amax() > 1, "proposals scale with the image inside the padding"


def test_state_bytes_are_those_of_the_arithmetic():
    lanes, patches = 3, 4 * 6
    embedding = patches * 8 * 4 + 1  # the newest frame under half the kernel, and whether there is one
    memory = 3 * (12 * 8 * 4 + 12 * 8) + 8  # window x (12 of 24 tokens, 8 wide, and their int64 places), filled
    tsa = tiny_student("tsa", shift_mode="concat_kv")
    blocks = 2 * (2 * patches * 8 * 4 + 1)  # keys and values, and whether there are any
    assert state_bytes(tsa.initial_state(lanes, (64, 96))) == lanes * (embedding + blocks + memory)
    dsta = tiny_student("dsta", lstm_dim=5)
    blocks = 2 * (2 * patches * 5 * 4)  # hidden and cell values
    assert state_bytes(dsta.initial_state(lanes, (64, 96))) == lanes * (embedding + blocks + memory)
    channel = tiny_student("tsa", shift_mode="channel", shift_rate=0.25, window=0)
    assert state_bytes(channel.initial_state(lanes, (64, 96))) == lanes * (embedding + 2 * (patches * 2 * 4 + 1) + 8)


def test_what_an_unfilled_memory_holds_does_not_matter():
    student = randomise(tiny_student("dsta"))
    frames, state = torch.randn(1, 1, 3, 64, 64), student.initial_state(1)
    expected, _ = student(frames, state)
    rubbish = state.memory._replace(tokens=torch.randn_like(state.memory.tokens) * 9)
    detections, _ = student(frames, state._replace(memory=rubbish))
    torch.testing.assert_close(detections, expected, rtol=1e-5, atol=1e-5)


def test_a_student_with_less_of_a_head_takes_the_first_stages_and_blocks_and_every_so_many_proposals():
    teacher = tiny_teacher(keep_rates={}).state_dict()
    student = student_of("tsa", SHARED | {"num_stages": 2, "decoder_depth": 1, "num_proposals": 4})
    student_from_teacher(student, teacher)
    own = student.state_dict()
    for key, value in own.items():
        if "localizer.proposal_" in key:
            assert torch.equal(value, teacher[key][[0, 1, 3, 4]])  # 4 of 6
        elif "localizer" in key or "decoder" in key:
            assert torch.equal(value, teacher[key])
    assert {key for key in teacher if "localizer" in key or "decoder" in key} - own.keys() == {
        key for key in teacher if "localizer.stages.2" in key or "decoder.blocks.1" in key
    }


def test_a_shallower_student_takes_blocks_evenly_spaced_with_the_first_and_the_last_one():
    teacher = tiny_teacher(keep_rates={}).state_dict()
    for depth, taken in ((4, (0, 1, 3, 4)), (3, (0, 2, 4)), (2, (0, 4)), (1, (4,))):
        student = student_of("tsa", SHARED | {"depth": depth, "pyramid_layers": (0, 0, 0, depth - 1)})
        student_from_teacher(student, teacher)
        for place, block in enumerate(taken):
            for ours, theirs in (
                ("mlp.fc1.weight", "mlp.fc1.weight"),
                ("attention.attn.qkv.weight", "attn.qkv.weight"),
            ):
                own = student.state_dict()[f"trunk.blocks.{place}.{ours}"]
                assert torch.equal(own, teacher[f"backbone.blocks.{block}.{theirs}"])
        assert torch.equal(student.trunk.norm.weight, teacher["backbone.norm.weight"])


NARROW = {"dim": 12, "head_dim": 8, "dynamic_dim": 3, "localizer_hidden": 10, "decoder_dim": 6, "decoder_hidden": 5}


def test_a_narrower_student_takes_the_same_channels_wherever_layers_meet():
    """Of weights in which every channel stands twice, side by side, one of each is left, in its place."""
    narrow = randomise(student_of("dsta", SHARED | NARROW | {"window": 3})).eval()
    wide = student_of("dsta", SHARED | {"window": 3, "dynamic_dim": 6}).eval()
    weights = {teacher_name(key): value for key, value in doubled(narrow, wide).items()}
    started = student_of("dsta", SHARED | NARROW | {"window": 3}).eval()
    student_from_teacher(started, weights)
    expected = narrow.state_dict()
    for key, value in started.state_dict().items():
        if key not in started.new_parameters():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0, msg=key)


def teacher_name(key: str) -> str:
    """Return the name that a clip detector has for a parameter of a student."""
    return key.replace("trunk.", "backbone.", 1).replace(".attention.", ".")


def doubled(narrow: StreamingDetector, wide: StreamingDetector) -> dict[str, Tensor]:
    """Return a narrow network's weights with every channel twice, of the shapes of a wide one."""
    weights = {}
    for key, value in narrow.state_dict().items():
        shape = wide.state_dict()[key].shape
        if key in narrow.new_parameters():
            continue
        if "inst_interact.dynamic_layer" in key:  # makes a matrix of channels x inner ones, then one of the reverse
            dim, inner = NARROW["head_dim"], NARROW["dynamic_dim"]
            halves = zip(value.chunk(2), ((dim, inner), (inner, dim)), strict=True)
            matrices = [part.unflatten(0, sizes).repeat_interleave(2, 0) for part, sizes in halves]
            value = torch.cat([matrix.repeat_interleave(2, 1).flatten(0, 1) for matrix in matrices])
        for dim in range(value.dim()):
            if shape[dim] == 2 * value.shape[dim]:
                value = value.repeat_interleave(2, dim)
        assert value.shape == shape
        weights[key] = value
    return weights


def test_few_actors_are_the_most_person_like_proposals_and_training_sees_all():
    student, few = (randomise(tiny_student("dsta", num_actors=count)) for count in (None, 2))
    frames = torch.randn(2, 3, 3, 64, 64)
    every, _ = student(frames, student.initial_state(2))
    chosen, _ = few(frames, few.initial_state(2))
    best = every.person_logits.softmax(-1)[..., 0].topk(2, dim=-1).indices.sort(dim=-1).values  # (B, T, 2)
    index = best[..., None]
    torch.testing.assert_close(chosen.boxes, every.boxes.gather(2, index.expand(-1, -1, -1, 4)))
    torch.testing.assert_close(chosen.person_logits, every.person_logits.gather(2, index.expand(-1, -1, -1, 2)))
    assert chosen.action_logits.shape == (2, 3, 2, 3)
    supervised, _ = few.outputs(frames, few.initial_state(2), deep=True)
    assert supervised.boxes.shape[-2] == supervised.action_logits.shape[-2] == 4


def test_an_actor_alone_is_classified_as_among_few():
    """With one proposal there is nobody to leave out."""
    student, few = (randomise(tiny_student("tsa", num_proposals=1, num_actors=count)) for count in (None, 1))
    frames = torch.randn(1, 4, 3, 64, 64)
    for ours, theirs in zip(
        few(frames, few.initial_state(1))[0], student(frames, student.initial_state(1))[0], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("changes", [{"num_actors": 0}, {"num_actors": 5}, {"pretrain_size": 72}, {"num_frames": 3}])
def test_sizes_that_cannot_be_meant_are_refused_at_construction(changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        tiny_student("tsa", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
@pytest.mark.parametrize("changes", [{"look_ahead": 2}, {"num_actors": 2, "decoder_context": "read"}])
def test_the_step_is_one_graph_to_torch_compile_and_is_compiled_once(temporal, changes):
    torch._dynamo.reset()  # what other networks have left
    student = randomise(tiny_student(temporal, **changes))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(student, fullgraph=True, backend=count)  # fullgraph refuses breaks
    frames, sizes = torch.randn(1, 8, 3, 64, 64), torch.tensor([[60, 64]])
    expected, state = [], student.initial_state(1)
    for frame in frames.split(1, dim=1):
        detections, state = student(frame, state, sizes)
        expected.append(detections)
    state = student.initial_state(1)
    for frame, theirs in zip(frames.split(1, dim=1), expected, strict=True):
        ours, state = step(frame, state, sizes)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize("last", [1, 4, 7])
@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_with_a_look_ahead_people_are_where_they_were_found_then(temporal, last):
    ahead = randomise(tiny_student(temporal, look_ahead=2))
    at_once = tiny_student(temporal)
    at_once.load_state_dict(ahead.state_dict())
    frames = torch.randn(2, 7, 3, 64, 64)
    with torch.no_grad():
        plain, _ = at_once.outputs(frames, at_once.initial_state(2))
        late, _ = ahead.outputs(frames, ahead.initial_state(2), last=last)
        encoded, _ = ahead.encode(frames, ahead.initial_state(2))
        training, *_ = ahead.detect(encoded, ahead.initial_state(2), last=last, deep=True, ends_here=True)
    boxes, persons = (part.unflatten(1, (2, 7)) for part in (plain.boxes, plain.person_logits))
    found, of_persons = (part.unflatten(1, (2, last)) for part in (late.boxes, late.person_logits))
    for place in range(last):
        frame = 7 - last + place - 2
        if frame < 0:  # nobody was there before the stream began
            assert not found[:, :, place].any() and (of_persons[:, :, place, :, 0] == -10).all()
        else:
            torch.testing.assert_close(found[:, :, place], boxes[:, :, frame], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(of_persons[:, :, place], persons[:, :, frame], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(training.boxes, late.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(training.action_logits[-1], late.action_logits[-1], rtol=1e-3, atol=1e-4)


def test_what_waits_is_the_newest_frames_people():
    student = randomise(tiny_student("tsa", look_ahead=2))
    at_once = tiny_student("tsa")
    at_once.load_state_dict(student.state_dict())
    frames = torch.randn(1, 5, 3, 64, 64)
    with torch.no_grad():
        _, state = student.outputs(frames, student.initial_state(1))
        plain, _ = at_once.outputs(frames, at_once.initial_state(1))
    torch.testing.assert_close(state.actors.boxes[0].transpose(0, 1), plain.boxes[:, -2:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_people_can_be_found_in_the_frame_after_the_one_that_is_answered_for(temporal):
    late = randomise(tiny_student(temporal, look_ahead=2, boxes_from="next"))
    at_once = tiny_student(temporal)
    at_once.load_state_dict(late.state_dict())
    frames = torch.randn(2, 6, 3, 64, 64)
    with torch.no_grad():
        plain, _ = at_once.outputs(frames, at_once.initial_state(2))
        found, _ = late.outputs(frames, late.initial_state(2))
    boxes, found = (outputs.boxes.unflatten(1, (2, 6)) for outputs in (plain, found))
    torch.testing.assert_close(found[:, :, 1:], boxes[:, :, :-1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_delay_that_is_set_later_is_that_of_a_network_built_with_it(delay):
    shape = {"window": 4, "memory_stride": 2, "keyframe_code": "answered", "memory_keep_rate": 1.0}
    student = randomise(tiny_student("dsta", look_ahead=2, **shape))
    built = tiny_student("dsta", look_ahead=delay, **shape)
    built.load_state_dict(student.state_dict())
    student.set_timing(built.timing)
    assert (student.look_ahead, student.receptive_field) == (delay, built.receptive_field)
    frames = torch.randn(2, 6, 3, 64, 64)
    ours, state = student(frames, student.initial_state(2))
    theirs, expected = built(frames, built.initial_state(2))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert state_bytes(state) == state_bytes(expected)


def test_the_next_frame_is_not_there_for_those_that_answer_at_once():
    with pytest.raises(ValueError, match="boxes_from=next needs a look_ahead of at least 1, got 0"):
        tiny_student("tsa", boxes_from="next")
