import csv
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import UserError
from datamodules.puppets import Puppets
from datamodules.puppets import source as puppets_source
from datamodules.puppets.actions import (
    CADENCE_HZ,
    CLASS_NAMES,
    ORDER_PAIRS,
    RAMP_FRAMES,
    SPEED_PAIRS,
    Span,
    controls,
    pose,
)
from datamodules.puppets.appearance import FRAME_SIZE, draw_background, draw_clothes, draw_hue
from datamodules.puppets.figure import SUPERSAMPLING, paint
from datamodules.puppets.scene import MAX_OVERLAP, draw_scene, render
from datamodules.puppets.script import CYCLE_FRAMES, HOLD_FRAMES, TRANSITION_FRAMES, draw_script, reverse
from datamodules.video.written import write_mp4

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    source = Puppets(tmp_path_factory.mktemp("puppets"), size="tiny", seed=5)
    source.prepare()
    return source


def poses(spans, num_frames):
    """(T, 10) angles."""
    return np.stack(pose(controls(spans, num_frames)), axis=1)


def read_rows(source, split):
    with open(source.folder / f"{split}.csv", newline="") as file:
        return list(csv.reader(file))


def read_json(source, name):
    return json.loads((source.folder / name).read_text())


@functools.cache
def scripts(count, num_frames=128):
    rng = np.random.default_rng(0)
    return [draw_script(rng, num_frames, CLASS_NAMES[number % 10]) for number in range(count)]


# --- classes and poses ---------------------------------------------------------------------------------------------


def test_every_class_belongs_to_exactly_one_pair():
    paired = [name for pair in ORDER_PAIRS + SPEED_PAIRS for name in pair]
    assert sorted(paired) == sorted(CLASS_NAMES)


@pytest.mark.parametrize(("forth", "back"), ORDER_PAIRS)
@pytest.mark.parametrize("length", [15, 20, 24])
def test_order_pairs_run_through_the_same_poses_in_opposite_order(forth, back, length):
    there = poses([Span(forth, 0, length)], length)
    home = poses([Span(back, 0, length)], length)
    np.testing.assert_allclose(there, home[::-1], atol=1e-12)
    assert np.abs(there[0] - there[-1]).max() > 1.0  # and these are poses worth the name


@pytest.mark.parametrize(("slow", "fast"), SPEED_PAIRS)
def test_speed_pairs_share_the_pose_of_every_phase(slow, fast):
    # Half the cadence: frame 2 k of the slow one has the phase of frame k of the fast one, away from the ramps.
    slow_poses = poses([Span(slow, 0, 48, cadence_hz=1.0, phase=0.3)], 48)
    fast_poses = poses([Span(fast, 0, 48, cadence_hz=2.0, phase=0.3)], 48)
    inside = np.arange(RAMP_FRAMES, 24 - RAMP_FRAMES)
    np.testing.assert_allclose(slow_poses[2 * inside], fast_poses[inside], atol=1e-12)


@pytest.mark.parametrize(("slow", "fast"), SPEED_PAIRS)
def test_a_cadence_is_either_slow_or_fast(slow, fast):
    assert CADENCE_HZ[slow][1] * 1.5 < CADENCE_HZ[fast][0]


def test_a_script_read_backwards_shows_the_same_frames_backwards():
    for spans in scripts(30):
        forwards, backwards = controls(spans, 128), controls([reverse(span, 128) for span in spans], 128)
        for name in ("seated", "bent", "raised", "gait", "wave"):
            np.testing.assert_allclose(getattr(backwards, name), getattr(forwards, name)[::-1], atol=1e-12)


# --- scripts -------------------------------------------------------------------------------------------------------


def test_scripts_keep_to_the_durations():
    for spans in scripts(100):
        for span in spans:
            low, high = CYCLE_FRAMES if span.action in CADENCE_HZ else TRANSITION_FRAMES
            assert low <= span.length <= high
            assert span.start >= 2 and span.stop <= 126
        active = np.zeros(128, bool)
        for span in spans:
            active[span.start : span.stop] = True
        edges = np.flatnonzero(np.diff(active.astype(int)))
        holds = edges[2::2] - edges[1:-1:2]
        assert all(HOLD_FRAMES[0] <= hold <= HOLD_FRAMES[1] for hold in holds)


def test_arms_and_legs_only_act_together_while_on_foot():
    together = set()
    for spans in scripts(200):
        for first in spans:
            for second in spans:
                if first is not second and first.start < second.stop and second.start < first.stop:
                    together.add(frozenset((first.action, second.action)))
    assert together == {
        frozenset((foot, arms))
        for foot in ("walk", "run")
        for arms in ("raise_arms", "lower_arms", "slow_wave", "fast_wave")
    }


@pytest.mark.parametrize("pair", ORDER_PAIRS + SPEED_PAIRS)
def test_the_members_of_a_pair_take_equal_time(pair):
    frames = [sum(span.length for spans in scripts(2000) for span in spans if span.action == name) for name in pair]
    assert frames[0] == pytest.approx(frames[1], rel=0.1)


def test_no_class_is_rare():
    counts = dict.fromkeys(CLASS_NAMES, 0)
    for spans in scripts(500):
        for span in spans:
            counts[span.action] += span.length
    assert max(counts.values()) < 2 * min(counts.values())


@pytest.mark.parametrize("wanted", CLASS_NAMES)
def test_a_script_holds_the_action_that_is_wanted(wanted):
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert wanted in {span.action for span in draw_script(rng, 48, wanted)}


def test_a_script_needs_room():
    with pytest.raises(ValueError, match="at least 28 frames, got 20"):
        draw_script(np.random.default_rng(0), 20, "walk")


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 4])
def test_boxes_are_the_extent_of_the_painted_figure(index):
    side = FRAME_SIZE * SUPERSAMPLING
    for actor in draw_scene(0, "train", index, 48).actors:
        white = actor.figure._replace(colours=((255, 255, 255),) * len(actor.figure.colours))
        for frame in range(0, 48, 6):
            canvas = np.zeros((side, side, 3), np.uint8)
            paint(canvas, white, frame)
            rows, columns = np.nonzero(canvas[..., 0] >= 128)
            extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / SUPERSAMPLING
            np.testing.assert_allclose(actor.boxes[frame], extent, atol=0.4)


def test_puppets_stay_inside_the_frame_and_apart():
    for index in range(12):
        actors = draw_scene(1, "val", index, 48).actors
        boxes = np.stack([actor.boxes for actor in actors])
        assert boxes.min() >= 0 and boxes.max() <= FRAME_SIZE
        for a in range(len(actors)):
            for b in range(a):
                for (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) in zip(boxes[a], boxes[b], strict=True):
                    shared = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
                    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
                    assert shared / union < MAX_OVERLAP


def test_the_same_seed_gives_the_same_frames_and_another_seed_others():
    first, again, other = (np.stack(list(render(draw_scene(seed, "train", 1, 30)))) for seed in (3, 3, 4))
    assert first.shape == (30, FRAME_SIZE, FRAME_SIZE, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_splits_share_no_hue_no_clothes_and_no_background():
    rng = np.random.default_rng(0)
    train, val = (np.array([draw_hue(rng, split) for _ in range(2000)]) for split in ("train", "val"))
    distance = np.abs(train[:, None] - val[None])
    assert np.minimum(distance, 1 - distance).min() > 0.3 / 24
    worn = {split: {draw_clothes(rng, split, 100.0) for _ in range(300)} for split in ("train", "val")}
    for part in ("shirt", "trousers", "skin"):
        colours = {split: {getattr(clothes, part) for clothes in worn[split]} for split in worn}
        assert not colours["train"] & colours["val"]
    backgrounds = [draw_background(np.random.default_rng(0), split) for split in ("train", "val")]
    assert not np.array_equal(*backgrounds)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_videos_decode_to_the_frames_that_were_drawn(tiny):
    import av

    for split, count in (("train", 4), ("val", 2)):
        paths = sorted((tiny.folder / "videos" / split).glob("*.mp4"))
        assert [path.stem for path in paths] == [f"{split}_{index:04d}" for index in range(count)]
        for index, path in enumerate(paths):
            with av.open(str(path)) as container:
                assert container.streams.video[0].average_rate == 16
                frames = list(container.decode(video=0))
            assert [frame.time for frame in frames] == [number / 16 for number in range(48)]
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(float)
            drawn = np.stack(list(render(draw_scene(5, split, index, 48)))).astype(float)
            assert decoded.shape == drawn.shape
            assert np.abs(decoded - drawn).mean() < 6


def test_csv_describes_every_person_of_every_second_frame(tiny):
    for split in ("train", "val"):
        seen = {}
        for video, seconds, *box, action, person in read_rows(tiny, split):
            x1, y1, x2, y2 = map(float, box)
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
            assert action == "" or 1 <= int(action) <= 10
            seen.setdefault(video, {}).setdefault(float(seconds) * 16, set()).add(person)
        for frames in seen.values():
            assert list(frames) == list(range(0, 48, 2))
            assert len({frozenset(persons) for persons in frames.values()}) == 1


def test_csv_and_tubes_agree(tiny):
    names = (tiny.folder / "classes.txt").read_text().split()
    assert tuple(names) == CLASS_NAMES == tiny.class_names()
    for split in ("train", "val"):
        from_csv = {
            (video, person, round(float(seconds) * 16), names[int(action) - 1]): [128 * float(x) for x in box]
            for video, seconds, *box, action, person in read_rows(tiny, split)
            if action
        }
        from_tubes = {}
        for video, entry in read_json(tiny, f"{split}_tubes.json").items():
            assert (entry["num_frames"], entry["width"], entry["height"]) == (48, 128, 128)
            for person, tubes in entry["persons"].items():
                for tube in tubes:
                    for frame, box in enumerate(tube["boxes"], start=tube["start_frame"]):
                        if frame % 2 == 0:
                            from_tubes[video, person, frame, tube["label"]] = box
        assert from_csv.keys() == from_tubes.keys()
        keys = sorted(from_csv)
        np.testing.assert_allclose([from_csv[k] for k in keys], [from_tubes[k] for k in keys], atol=0.02)


def test_segments_are_the_union_of_the_tubes(tiny):
    for split in ("train", "val"):
        database = read_json(tiny, f"{split}_segments.json")["database"]
        for video, entry in read_json(tiny, f"{split}_tubes.json").items():
            assert database[video]["subset"] == split and database[video]["duration"] == 3.0
            acted = {
                (tube["label"], tube["start_frame"] + frame)
                for tubes in entry["persons"].values()
                for tube in tubes
                for frame in range(len(tube["boxes"]))
            }
            covered = [
                (annotation["label"], frame)
                for annotation in database[video]["annotations"]
                for frame in range(48)
                if annotation["segment"][0] * 16 <= frame < annotation["segment"][1] * 16
            ]
            assert len(covered) == len(set(covered)) and set(covered) == acted


def test_even_the_tiny_training_videos_show_every_class(tiny):
    assert {row[6] for row in read_rows(tiny, "train")} == {""} | {str(number) for number in range(1, 11)}


def test_videos_lists_files_with_their_keyframes(tiny):
    videos = tiny.videos("train")
    assert [video.video_id for video in videos] == [f"train_{index:04d}" for index in range(4)]
    assert all(video.path.is_file() for video in videos)
    assert tiny.videos("test")[0].video_id == tiny.videos("val")[0].video_id == "val_0000"
    rows = [row for row in read_rows(tiny, "train") if row[0] == "train_0001" and float(row[1]) == 1.0]
    keyframe = next(keyframe for keyframe in videos[1].keyframes if keyframe.timestamp == 1.0)
    assert [keyframe.timestamp for keyframe in videos[1].keyframes] == [number / 8 for number in range(24)]
    boxes = {tuple(np.float32(x) for x in row[2:6]) for row in rows}
    assert {tuple(box) for box in keyframe.boxes} == boxes
    assert keyframe.labels.shape == (len(boxes), 10)
    assert keyframe.labels.sum() == sum(row[6] != "" for row in rows)


# --- making --------------------------------------------------------------------------------------------------------


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(tiny, tmp_path):
    source = Puppets(tmp_path, size="tiny", seed=5)
    source.prepare()
    whole = contents(source.folder)
    assert whole == contents(tiny.folder)  # the same seed, the same bytes

    (source.folder / "complete.json").rename(source.folder / "begun.json")
    (source.folder / "val.csv").unlink()
    kept, *lost = sorted((source.folder / "videos" / "train").glob("*.mp4"))
    for path in lost:
        path.unlink()
    before = kept.stat().st_mtime_ns
    with pytest.raises(UserError, match=r"python -m datamodules\.puppets --size tiny"):
        source.videos("val")
    source.prepare()
    assert kept.stat().st_mtime_ns == before
    assert contents(source.folder) == whole


@pytest.mark.slow
def test_processes_that_share_a_folder_make_its_videos_once(tmp_path):
    """As those of two machines do, each of which prepares its data."""
    program = (
        "import datamodules.puppets.source as source; make, made = source._make_videos, []\n"
        "source._make_videos = lambda *jobs, **title: made.append(1) or make(*jobs, **title)\n"
        f"source.Puppets({str(tmp_path)!r}, 'tiny').prepare(); print(len(made))"
    )
    command, root = [sys.executable, "-c", program], Path(__file__).parents[3]
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0] and sorted(said) == ["0", "0", "1"]


def test_a_complete_set_is_left_alone(tiny, monkeypatch):
    monkeypatch.setattr(puppets_source, "_make_videos", lambda *args, **kwargs: pytest.fail("rendered again"))
    tiny.prepare()


def test_a_video_appears_whole_or_not_at_all(tmp_path):
    def frames():
        yield np.zeros((128, 128, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(tmp_path / "video.mp4", frames(), (128, 128), fps=16, crf=23, preset="ultrafast")
    assert list(tmp_path.iterdir()) == []


def test_another_seed_or_version_is_refused(tiny, monkeypatch):
    with pytest.raises(ValueError, match=f"delete {tiny.folder}"):
        Puppets(tiny.root, size="tiny", seed=6).prepare()
    monkeypatch.setattr(puppets_source, "GENERATOR_VERSION", 0)
    with pytest.raises(ValueError, match="generator_version"):
        tiny.prepare()


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="did not make"):
        Puppets(tmp_path, size="tiny").prepare()


def test_bad_arguments_are_refused(tiny):
    with pytest.raises(ValueError, match="size must be one of tiny, small, full"):
        Puppets(size="huge")
    with pytest.raises(ValueError, match="seed"):
        Puppets(seed=-1)
    with pytest.raises(ValueError, match="split must be one of train, val, test"):
        tiny.videos("training")


@pytest.mark.slow
def test_workers_import_neither_torch_nor_the_main_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"open({str(tmp_path / 'imports')!r}, 'a').write('x')\n"
        "from datamodules.puppets import Puppets\n"
        f"Puppets({str(tmp_path)!r}, size='tiny').prepare()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, program], env={"PYTHONPATH": str(REPOSITORY)}, check=True, timeout=60)
    assert (tmp_path / "imports").read_text() == "x"
