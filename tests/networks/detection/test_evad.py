"""The teacher against a slow recomputation of the whole model, and against what is known of the released one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert

from callbacks.measures.flops import count_gflops
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.head import DetectionHead
from lightning_modules.networks.detection.localizer import Localizer
from lightning_modules.networks.detection.vit import VideoViT
from lightning_modules.networks.layers.pixels import pad_clips
from lightning_modules.networks.layers.roi_align import pyramid_levels
from results.benchmarks.naive_evad import naive_evad
from tests.networks.detection.slow_evad import slow_evad
from tests.networks.tiny import CONFIG, teacher_of, tiny_teacher

SIZES = [(50, 90), (64, 96)]
"""Not square, and the first not a multiple of anything; both are padded to 64 x 96, a 4 x 6 grid."""
RELEASED_PARAMETERS = 185_359_636
"""Weights of the published ViT-B model (`evad-state-dict-vitb.txt`), in 528 parameters."""


def some_clips(sizes=SIZES, frames=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, frames, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key_order": "as_published"},
        {"roi_kernel": "separable", "keep_rates": {}, "roi_extension": (0.0, 0.0)},
        {"enhanced_weight": 1.0, "num_frames": 4, "keep_rates": {0: 0.9}},
        {"keyframe": "last"},
        {"keyframe": "last", "num_frames": 6},
    ],
    ids=["defaults", "as_published", "nothing_dropped", "two_slots", "keyframe_last", "last_of_three_slots"],
)
def test_every_output_equals_the_slow_recomputation(changes):
    config = CONFIG | changes
    teacher = tiny_teacher(**changes)
    clips = some_clips(frames=config["num_frames"])
    with torch.no_grad():
        outputs = teacher.outputs(clips, deep=True)
    weights = {key: value.double().numpy() for key, value in teacher.state_dict().items()}
    padded, _ = pad_clips(clips, 32)
    for item, (clip, size) in enumerate(zip(padded, SIZES, strict=True)):
        slow = slow_evad(clip.double().numpy(), size, weights, config)
        pairs = [
            (outputs.person_logits[:, item], slow.person_logits),
            (outputs.boxes[:, item], slow.boxes),
            (outputs.action_logits[:, item], slow.action_logits),
            *((ours[item], theirs) for ours, theirs in zip(outputs.maps, slow.maps, strict=True)),
        ]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.double(), torch.from_numpy(theirs), rtol=1e-4, atol=1e-4)
        assert len(outputs.kept_by_layer) == len(config["keep_rates"])
        for ours, theirs in zip(outputs.kept_by_layer, slow.kept, strict=True):
            assert ours[item].tolist() == theirs.tolist()


def test_the_proposals_of_that_comparison_lie_in_every_pyramid_level_and_leave_the_image():
    with torch.no_grad():
        first = box_convert(tiny_teacher().head.localizer.proposal_boxes, "cxcywh", "xyxy")
        first = first * torch.tensor([90, 50, 90, 50])
    assert pyramid_levels(first, 4).unique().tolist() == [0, 1, 2, 3]
    assert (first < 0).any() and (first[:, 2] > 90).any()


@pytest.mark.parametrize("roi_kernel", ["separable", "torchvision"])
def test_a_clip_gives_the_same_in_a_batch_of_unequal_clips_as_alone(roi_kernel):
    teacher = tiny_teacher(roi_kernel=roi_kernel)
    clips = some_clips([*SIZES, (64, 70)])
    with torch.no_grad():
        together = teacher.outputs(clips, deep=True)
        for item, clip in enumerate(clips):
            padded = F.pad(clip, (0, 96 - clip.shape[-1], 0, 64 - clip.shape[-2]))
            alone = teacher.outputs(padded[None], torch.tensor([clip.shape[-2:]]), deep=True)
            for name in ("person_logits", "boxes", "action_logits"):
                torch.testing.assert_close(
                    getattr(together, name)[:, item], getattr(alone, name)[:, 0], rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize(("keyframe", "place"), [("middle", 4), ("last", 7)])
def test_a_shorter_clip_has_its_keyframe_on_the_code_of_the_whole_clips(keyframe, place):
    """The curriculum shows the keyframe's slot alone: it must stand where the whole clip has it."""
    teacher = tiny_teacher(keyframe=keyframe)
    assert (teacher.keyframe_of(8), teacher.frames_after_keyframe(8)) == (place, 7 - place)
    for positions in (teacher.backbone.positions, teacher.head.decoder.positions):
        alone, whole = positions(1, 4, 4), positions(4, 4, 4)
        torch.testing.assert_close(alone[0], whole[place // 2], rtol=0, atol=0)


def test_the_whole_frame_is_the_image_where_no_sizes_are_given():
    teacher, clips = tiny_teacher(), torch.stack(some_clips([(64, 96)] * 2))
    with torch.no_grad():
        given, implied = teacher(clips, torch.tensor([[64, 96]] * 2)), teacher(clips)
    torch.testing.assert_close(implied, given, rtol=0, atol=0)


def test_inference_takes_the_last_stage_and_the_last_block():
    teacher, clips = tiny_teacher(), some_clips()
    with torch.no_grad():
        deep, shallow, detections = teacher.outputs(clips, deep=True), teacher.outputs(clips), teacher(clips)
    assert deep.action_logits.shape[0] == CONFIG["decoder_depth"] and shallow.action_logits.shape[0] == 1
    torch.testing.assert_close(shallow.detections, detections, rtol=0, atol=0)
    torch.testing.assert_close(deep.action_logits[-1], detections.action_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deep.boxes[-1], detections.boxes, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "untrained"),
    [
        ({}, []),
        ({"checkpoint_blocks": True}, []),
        ({"decoder_context": "none"}, []),
        ({"temporal_roi": False}, ["head.decoder.mask_token"]),
        ({"decoder_context": "none", "temporal_roi": False}, ["head.decoder.mask_token"]),
    ],
)
def test_every_parameter_that_is_trained_receives_a_gradient(changes, untrained):
    teacher = tiny_teacher(**changes).train()
    outputs = teacher.outputs(some_clips(), deep=True)
    (outputs.person_logits.sum() + (outputs.boxes / 50).sum() + outputs.action_logits.square().sum()).backward()
    without = [
        name
        for name, parameter in teacher.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == untrained == [name for name, p in teacher.named_parameters() if not p.requires_grad]


def test_checkpointed_blocks_give_the_same_gradients():
    gradients = []
    for checkpoint_blocks in (False, True):
        teacher = tiny_teacher(checkpoint_blocks=checkpoint_blocks).train()
        teacher.outputs(some_clips(), deep=True).action_logits.sum().backward()
        gradients.append({name: p.grad for name, p in teacher.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_token_dropout_differs_between_the_two_key_orders_in_actions_alone():
    clips = some_clips()
    with torch.no_grad():
        right, published = (tiny_teacher(key_order=order).outputs(clips) for order in ("position", "as_published"))
    torch.testing.assert_close(published.boxes, right.boxes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(published.person_logits, right.person_logits, rtol=1e-4, atol=1e-4)
    assert (published.action_logits - right.action_logits).abs().max() > 1e-2
    for theirs, ours in zip(published.kept_by_layer, right.kept_by_layer, strict=True):
        assert theirs.sort(dim=1).values.tolist() == ours.tolist()


def test_the_default_model_has_the_released_parameters():
    with torch.device("meta"):
        teacher = EvadTeacher(80, VideoViT(keep_rates={3: 0.7, 6: 0.7, 9: 0.7}))
    assert len(list(teacher.parameters())) == 528
    assert sum(parameter.numel() for parameter in teacher.parameters()) == RELEASED_PARAMETERS
    assert len(teacher.state_dict()) == 528, "position tables are recomputed, not stored"
    parts = {"backbone": teacher.backbone, **dict(teacher.head.named_children())}
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == {
        "backbone": 1_180_416 + 85_045_248 + 1_536,
        "pyramid": 4 * (196_864 + 590_080),
        "localizer": 79_292_196 + 25_600 + 400,
        "decoder": 384 + 294_912 + 16_371_168,
    }


def test_a_published_clip_has_the_published_token_counts():
    with torch.device("meta"):
        head = partial(DetectionHead, localizer=Localizer(roi_kernel="separable"))
        teacher = EvadTeacher(80, VideoViT(keep_rates={3: 0.7, 6: 0.7, 9: 0.7}), head)
        outputs = teacher.outputs(torch.empty(2, 3, 16, 288, 288), deep=True)
    assert [324 + kept.shape[1] for kept in outputs.kept_by_layer] == [1815, 1271, 890]
    assert [tuple(tap.shape) for tap in outputs.maps] == [(2, 768, 18, 18)] * 4
    assert outputs.person_logits.shape == (6, 2, 100, 2)
    assert outputs.boxes.shape == (6, 2, 100, 4)
    assert outputs.action_logits.shape == (6, 2, 100, 80)


WITHOUT_CONTEXT, WITHOUT_TEMPORAL_ROI = {"decoder_context": "none"}, {"temporal_roi": False}


def test_the_switches_of_context_and_temporal_roi_change_actions_alone_and_no_weight():
    clips, weights, actions = some_clips(), tiny_teacher().state_dict(), []
    for changes in ({}, WITHOUT_CONTEXT, WITHOUT_TEMPORAL_ROI, WITHOUT_CONTEXT | WITHOUT_TEMPORAL_ROI):
        teacher = tiny_teacher(seed=1, **changes)
        teacher.load_state_dict(weights, strict=True)
        with torch.no_grad():
            outputs = teacher.outputs(clips)
        if not actions:
            boxes = outputs.boxes
        torch.testing.assert_close(outputs.boxes, boxes, rtol=0, atol=0)
        assert all((outputs.action_logits - earlier).abs().max() > 1e-2 for earlier in actions)
        actions.append(outputs.action_logits)


@pytest.mark.slow
def test_every_operation_is_counted_without_context_and_without_temporal_roi():
    clip = torch.zeros(1, 3, 8, 64, 96)
    full, context_off, roi_off, both_off = (
        count_gflops(tiny_teacher(**changes), clip)
        for changes in ({}, WITHOUT_CONTEXT, WITHOUT_TEMPORAL_ROI, WITHOUT_CONTEXT | WITHOUT_TEMPORAL_ROI)
    )
    assert full.uncounted == context_off.uncounted == roi_off.uncounted == both_off.uncounted == ()
    # In the first of two blocks 58 kept tokens besides 6 actors: norms, qkv, attention, projection and MLP. The last
    # computes actors alone, for which every token is normed and becomes a key and a value.
    tokens, actors, dim = 58, 6, 12
    first = tokens * (5 * dim + 4 * dim**2 + 5 * dim + 8 * dim**2) + 2 * dim * ((tokens + actors) ** 2 - actors**2)
    last = tokens * (5 * dim + 2 * dim**2 + 2 * dim * actors)
    assert (full.gflops - context_off.gflops) * 1e9 == pytest.approx(first + last)
    assert (roi_off.gflops - both_off.gflops) * 1e9 == pytest.approx(first + last)
    # A RoI in one slot instead of four: two products with the sampling matrices of 2 bins on the 4 x 6 map.
    rows, columns = 3 * dim * actors * 2 * 4 * 6, 3 * dim * actors * 2 * 2 * 6
    assert (full.gflops - roi_off.gflops) * 1e9 == pytest.approx(rows + columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pyramid_layers": (0, 1, 2)}, "name 4 blocks"),
        ({"pyramid_layers": (0, 1, 2, 5)}, r"pyramid_layers=\[0, 1, 2, 5\] must lie in 0..4"),
        ({"keep_rates": {5: 0.9}}, r"keep_rates \[5\]"),
        ({"keep_rates": {1: 0.2}}, r"keep rates 0\.2 at blocks 1 leave 0\.2 of .* 1/4 = 0\.25 .* num_frames=8"),
        ({"keep_rates": {2: 0.5, 0: 0.6, 1: 0.7}}, r"0\.6, 0\.7, 0\.5 at blocks 0, 1, 2 leave 0\.6, 0\.42, 0\.21 of"),
        ({"keep_rates": {1: 1.5}}, r"above 0 and at most 1 .*\{1: 1\.5\}"),
        ({"keep_rates": {1: 0.0}}, r"above 0 and at most 1 .*\{1: 0\.0\}"),
        ({"keep_rates": {1: float("nan")}}, "above 0 and at most 1"),
        ({"enhanced_weight": -1.0}, r"enhanced_weight .* got -1\.0"),
        ({"num_frames": 6}, "num_frames=6 gives an odd number of slots, 3 of 2 frames"),
        ({"num_frames": 7}, "multiple of 2"),
        ({"pretrain_size": 70}, "does not divide into patches"),
        ({"patch_size": 18, "pretrain_size": 72}, "patch_size=18 does not divide by 4"),
        ({"dim": 25}, "dim=25 does not divide into num_heads=3"),
        ({"decoder_dim": 13}, "dim=13 does not divide into num_heads=2"),
        ({"head_dim": 15}, "dim=15 does not divide into num_heads=2"),
        ({"num_proposals": 0}, "num_proposals must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused_at_construction(changes, message):
    with pytest.raises(ValueError, match=message):
        teacher_of(CONFIG | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_rates": {0: 0.5, 1: 0.5}},  # the keyframe's slot alone is left: a quarter
        {"keep_rates": {0: 1.0, 1: 0.25, 2: 1}},
        {"pretrain_size": 80},  # an odd grid of position codes: frames are padded to an even one
    ],
)
def test_sizes_at_the_limit_work(changes):
    with torch.no_grad():
        assert tiny_teacher(**changes)(some_clips([(64, 96)])).boxes.isfinite().all()


def test_clips_that_do_not_fit_are_refused():
    teacher = tiny_teacher()
    with pytest.raises(ValueError, match="does not divide into 2 x 16 x 16"):
        teacher(torch.zeros(1, 3, 8, 60, 96))
    with pytest.raises(ValueError, match="multiple of twice the patch size"):
        teacher(torch.zeros(1, 3, 8, 48, 96))
    with pytest.raises(ValueError, match="10 slots but the network was made for 4"):
        teacher(torch.zeros(1, 3, 20, 64, 96))


def test_a_shorter_clip_is_the_middle_of_the_whole_one():
    """Its slots carry the codes of the middle ones: a two-frame clip stands at the keyframe slot."""
    teacher = tiny_teacher(keep_rates={1: 0.8})
    clip = torch.stack(some_clips([(64, 64)]))
    with torch.no_grad():
        short = teacher.backbone(clip[:, :, 4:6])
        outputs = teacher.outputs(clip[:, :, 4:6])
    assert short.grid == (1, 4, 4) and short.kept.shape == (1, 0)
    embedded = teacher.backbone.patch_embed(clip)[:, 2] + teacher.backbone.positions(4, 4, 4)[2]
    expected = teacher.backbone.blocks[0](embedded, embedded.new_zeros(1, 0, dtype=torch.long))[0]
    torch.testing.assert_close(short.maps[0].flatten(2).transpose(1, 2), expected, rtol=1e-5, atol=1e-5)
    assert outputs.detections.action_logits.isfinite().all()


SMALL = {"num_stages": 1, "decoder_depth": 1, "num_frames": 4, "keep_rates": {1: 0.8}}


def loss_and_gradients(teacher, outputs_of, autocast=False):
    """Outputs, and the gradient of a fixed mixture of them by parameter."""
    clips, sizes = pad_clips(some_clips(frames=4), 32)
    teacher.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = outputs_of(clips, sizes, deep=True)
    generator = torch.Generator().manual_seed(3)
    mixed = [(part * torch.randn(part.shape, generator=generator)).sum() for part in (outputs[0], outputs[2])]
    sum(mixed).backward()
    return outputs, torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in teacher.parameters()]
    )


@pytest.mark.slow
def test_it_compiles_in_one_piece_forward_and_backward():
    teacher = tiny_teacher(**SMALL)
    plain, gradients = loss_and_gradients(teacher, teacher.outputs)
    # fullgraph: a graph break would be an error. No code is generated here: that takes minutes and is torch's business.
    compiled = torch.compile(teacher.outputs, backend="aot_eager", fullgraph=True)
    found, found_gradients = loss_and_gradients(teacher, compiled)
    for ours, theirs in zip(found[:3], plain[:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-3, atol=1e-4)


def test_autocast_to_bfloat16_gives_nearly_the_same_forward_and_backward():
    teacher = tiny_teacher(**SMALL)
    plain, gradients = loss_and_gradients(teacher, teacher.outputs)
    found, found_gradients = loss_and_gradients(teacher, teacher.outputs, autocast=True)
    assert found.boxes.dtype == found.person_logits.dtype == found.action_logits.dtype == torch.float32
    sizes = (plain.boxes[..., 2:] - plain.boxes[..., :2]).amax(-1, keepdim=True)
    assert ((found.boxes - plain.boxes).abs() / sizes).max() < 0.1
    assert (found.action_logits.sigmoid() - plain.action_logits.sigmoid()).abs().max() < 0.05
    assert (found_gradients - gradients).norm() < 0.2 * gradients.norm()


@pytest.mark.parametrize(
    "changes", [{}, {"key_order": "as_published"}, {"keep_rates": {}, "roi_extension": (0.0, 0.0)}]
)
def test_the_published_arithmetic_that_speed_is_compared_with_gives_the_same_outputs(changes):
    teacher = tiny_teacher(**changes)
    clips, sizes = pad_clips(some_clips(), 32)
    with torch.no_grad():
        ours, published = teacher.outputs(clips, sizes, deep=True), naive_evad(teacher, clips, sizes)
    for name in ("person_logits", "boxes", "action_logits"):
        torch.testing.assert_close(getattr(ours, name), getattr(published, name), rtol=1e-4, atol=1e-4)
    assert [kept.sort(1).values.tolist() for kept in ours.kept_by_layer] == [kept.tolist() for kept in published.kept]
