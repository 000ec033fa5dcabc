"""``python main.py check``: report, page, exit status; and own videos, which bring their number of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_modules.networks.weights.loading import save_weights
from main import main
from tests.datamodules.miniature import numbered_frames
from tests.datamodules.written_videos import write_video

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
NUM_CLASSES = 24
SHORT = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.enable_checkpointing=false"]


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """Four videos of 24 classes in the empty folder that commands are run in."""
    monkeypatch.chdir(tmp_path)
    precision = torch.get_float32_matmul_precision()
    names = [f"video_{number}" for number in range(4)]
    for name in names:
        write_video(tmp_path / "own" / "videos" / f"{name}.mp4", numbered_frames(32, 96, 128), fps=8)
    rows = [
        f"{name},{second},0.1,0.2,0.5,0.9,{action},0"
        for name in names
        for second in (1, 2, 3)
        for action in range(1, NUM_CLASSES + 1)
    ]
    (tmp_path / "own" / "boxes.csv").write_text("\n".join(rows))
    (tmp_path / "own" / "classes.txt").write_text("\n".join(f"action {number}" for number in range(NUM_CLASSES)))
    yield tmp_path / "own"
    torch.set_float32_matmul_precision(precision)


def arguments(command: str, config: str, own: Path) -> list[str]:
    source = "--data.init_args.source.init_args."
    return [
        command,
        f"--config={ROOT / 'configs' / config}.yaml",
        f"{source}videos={own / 'videos'}",
        f"{source}annotations={own / 'boxes.csv'}",
        f"{source}classes={own / 'classes.txt'}",
        "--data.init_args.frames.cache=null",
        "--data.init_args.loader.batch_size=1",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.logger=false",
        "--trainer.callbacks=null",
        "--trainer.enable_progress_bar=false",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["evad_own_videos", "distill_dsta_own_videos"])
def test_good_data_are_counted_and_drawn_and_the_command_succeeds(config, own, capsys):
    main([*arguments("check", config, own), "--page=page.png"])
    said = capsys.readouterr().out
    assert said.startswith("OwnVideos: 24 classes\n")
    assert "Nothing is wrong." in said and "page.png" in said
    with Image.open("page.png") as page:
        assert page.format == "PNG" and page.size[0] > 1000


def test_a_mistake_is_reported_and_the_command_fails(own, capsys, caplog):
    with (own / "boxes.csv").open("a") as file:
        file.write("\nvideo_1,1,0.1,0.2,0.5,0.9,0,0\nvideo_1,30,0.1,0.2,0.5,0.9,1,0\n")
    with pytest.raises(SystemExit) as end:
        main([*arguments("check", "evad_own_videos", own), "--trainer.precision=bf16-mixed", "--page=page.png"])
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "action ids that are 0: 1\n" in said and "videos with time stamps outside them: 1\n" in said
    assert "precision" not in caplog.text  # of a network that there is none of
    assert Path("page.png").is_file()


@pytest.mark.slow
def test_networks_for_own_videos_have_as_many_classes_as_those(own):
    shipped = f"--model.init_args.weights={ROOT / 'results' / 'weights' / 'evad.pt'}"
    cli = main([*arguments("fit", "evad_own_videos", own), shipped, *SHORT])
    assert cli.model.network.num_classes == NUM_CLASSES
    save_weights(cli.model.network.state_dict(), own / "teacher.pt")
    teacher = f"--model.init_args.teacher_weights={own / 'teacher.pt'}"
    cli = main([*arguments("fit", "distill_dsta_own_videos", own), teacher, *SHORT])
    assert cli.trainer.global_step == 1
    assert cli.model.network.num_classes == NUM_CLASSES
