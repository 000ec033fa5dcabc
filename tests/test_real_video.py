"""The main job on real video: the shipped teacher fine-tuned, a student distilled, both scored, a film predicted on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import main

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
UCF = DATA / "ucf101_24"

pytestmark = pytest.mark.skipif(not UCF.is_dir(), reason=f"needs real clips in {DATA}")


def arguments(command: str, config: str, tmp_path: Path, *more: str) -> list[str]:
    source = "--data.init_args.source.init_args."
    return [
        command,
        f"--config={ROOT / 'configs' / config}",
        f"{source}videos={UCF / 'videos'}",
        f"{source}annotations={UCF / 'own_videos.csv'}",
        f"{source}classes={UCF / 'classes.txt'}",
        f"{source}train={UCF / 'trainlist.txt'}",
        f"{source}val={UCF / 'testlist.txt'}",
        f"--data.init_args.frames.cache={tmp_path / 'cache'}",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.callbacks=null",
        *more,
    ]


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch, tmp_path):
    """Configs name the shipped weights from the top of the repository; runs go elsewhere."""
    monkeypatch.chdir(ROOT)


def short_fit(config: str, tmp_path: Path, *more: str):
    fit = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2"]
    return main.main(arguments("fit", config, tmp_path, "--trainer.logger=false", *fit, *more)).trainer


@pytest.mark.slow
def test_the_shipped_teacher_fine_tunes_on_real_clips_and_its_student_is_distilled_and_scored(tmp_path):
    teacher = short_fit("evad_own_videos.yaml", tmp_path, "--data.init_args.loader.batch_size=2")
    assert teacher.global_step == 3
    assert 0 <= float(teacher.callback_metrics["val/map"]) <= 1
    weights = tmp_path / "teacher.ckpt"
    teacher.save_checkpoint(weights)

    of_teacher = [f"--model.init_args.teacher_weights={weights}"]
    student = short_fit("distill_dsta_own_videos.yaml", tmp_path, "--data.init_args.loader.batch_size=1", *of_teacher)
    assert student.global_step == 3
    checkpoint = tmp_path / "student.ckpt"
    student.save_checkpoint(checkpoint)

    test = [f"--ckpt_path={checkpoint}", "--trainer.logger=false", "--trainer.limit_test_batches=3"]
    scored = main.main(arguments("test", "distill_dsta_own_videos.yaml", tmp_path, *of_teacher, *test)).trainer
    assert 0 <= float(scored.callback_metrics["test/map"]) <= 1


@pytest.mark.slow
def test_prediction_on_a_film_writes_a_line_a_sampled_frame_with_its_time(tmp_path):
    film = DATA / "clips" / "demo_spatiotemporal_det.mp4"
    writer = json.dumps(
        {"class_path": "callbacks.files.prediction_writer.PredictionWriter", "init_args": {"folder": str(tmp_path)}}
    )
    main.main(
        [
            "predict",
            f"--config={ROOT / 'configs' / 'dsta.yaml'}",
            "--data.init_args.frames.short_side=128",
            "--data.init_args.frame_stride=8",
            f"--data.init_args.predict_videos=[{film}]",
            f"--trainer.callbacks=[{writer}]",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
        ]
    )
    lines = [json.loads(line) for line in (tmp_path / f"{film.stem}.jsonl").read_text().splitlines()]
    frames = json.loads((DATA / "clips" / "facts.json").read_text())[film.name]
    times = [line["timestamp"] for line in lines]
    assert len(lines) == -(-frames["pyav_frames"] // 8)
    assert times == sorted(set(times)) and times[0] == pytest.approx(frames["first_time"], abs=1e-3)
    assert times[-1] <= frames["last_time"] + 1e-3
    for line in lines:
        for found in line["detections"]:
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 <= x2 <= frames["display_wh"][0] and 0 <= y1 <= y2 <= frames["display_wh"][1]
