"""Drawn pixels, the text of labels, and the page that a validation run logs."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from torchvision.io import decode_image

from callbacks.pictures.detection_images import (
    GREEN,
    ORANGE,
    DetectionImages,
    arrange_page,
    draw_detections,
    label_text,
)

BLANK = torch.zeros(3, 400, 500, dtype=torch.uint8)


def pixels(image, colour):
    """(H, W) bool: where the image has exactly this colour."""
    return (image == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(dim=0)


def test_boxes_are_drawn_at_their_corners_in_their_colours():
    image = draw_detections(
        BLANK, torch.tensor([[100.0, 120, 200, 220]]), [""], torch.tensor([[300.0, 50, 400, 350]]), [""]
    )
    for colour, (x1, y1, x2, y2) in ((ORANGE, (100, 120, 200, 220)), (GREEN, (300, 50, 400, 350))):
        rows, columns = pixels(image, colour).nonzero(as_tuple=True)
        drawn = [columns.min(), rows.min(), columns.max(), rows.max()]
        assert all(abs(int(a) - b) <= 1 for a, b in zip(drawn, (x1, y1, x2, y2), strict=True))
    assert not BLANK.any()


def test_small_frames_are_enlarged_with_their_boxes():
    frame = torch.zeros(3, 100, 128, dtype=torch.uint8)
    frame[0, 0, 0] = 255
    image = draw_detections(frame, torch.tensor([[50.0, 25, 100, 75]]), [""])
    assert image.shape == (3, 400, 512) and image.dtype == torch.uint8
    assert (image[0, :4, :4] == 255).all() and not image[0, 4:8, :8].any()
    rows, columns = pixels(image, ORANGE).nonzero(as_tuple=True)
    assert abs(int(columns.min()) - 200) <= 1 and abs(int(rows.max()) - 300) <= 1


def test_large_frames_keep_their_size():
    assert draw_detections(BLANK, torch.zeros(0, 4), []).equal(BLANK)


@pytest.mark.parametrize("box", [[0.0, 0, 40, 30], [480.0, 380, 900, 700], [-50.0, -50, 499, 399]])
def test_text_stays_inside_the_frame(box):
    without = draw_detections(BLANK, torch.tensor([box]), [""])
    image = draw_detections(BLANK, torch.tensor([box]), ["raise arms 0.91\nwalk 0.55"])
    label = (image != without).any(dim=0)
    rows, columns = label.nonzero(as_tuple=True)
    assert rows.max() - rows.min() > 20 and columns.max() - columns.min() > 80
    assert (image[:, label] > 200).all(dim=0).any()  # white letters


def test_predicted_text_is_above_and_true_text_below():
    box = torch.tensor([[100.0, 150, 300, 250]])
    above = pixels(draw_detections(BLANK, box, ["wave"]), ORANGE)
    below = pixels(draw_detections(BLANK, torch.zeros(0, 4), [], box, ["wave"]), GREEN)
    assert above[:148].any() and not above[253:].any()
    assert below[253:].any() and not below[:148].any()


def test_wrong_frames_and_counts_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        draw_detections(BLANK.float(), torch.zeros(0, 4), [])
    with pytest.raises(ValueError, match="boxes has 1 rows but there are 0 texts"):
        draw_detections(BLANK, torch.zeros(1, 4), [])


def test_label_text_names_classes_from_the_best_down():
    scores = torch.tensor([0.3, 0.9, 0.29])
    assert label_text(scores, 0.3, ("walk", "wave", "sit")) == "wave 0.90\nwalk 0.30"
    assert label_text(scores, 0.5, with_score=False) == "class 1"
    assert label_text(scores, 0.95) == ""
    with pytest.raises(ValueError, match="3 scores a box but 2 class names"):
        label_text(scores, 0.3, ("walk", "wave"))


def test_page_holds_every_image_unscaled():
    images = [
        torch.full((3, height, 10), number, dtype=torch.uint8) for number, height in enumerate((5, 8, 6), start=1)
    ]
    page = arrange_page(images)
    assert page.shape == (3, 2 * 8 + 4, 2 * 10 + 4)
    for number, image in enumerate(images, start=1):
        assert (page == number).sum() == image.numel()


class Frames(LightningDataModule):
    class_names = ("walk", "wave")

    def val_dataloader(self):
        return DataLoader(torch.arange(12), batch_size=3)


class Detector(LightningModule):
    """Finds one box in every frame; frame i is of brightness i."""

    def validation_step(self, batch, batch_idx):
        frames = batch[:, None, None, None].expand(-1, 3, 96, 96).to(torch.uint8)
        box = torch.tensor([[10.0, 20, 60, 80]])
        return {
            "frames": frames,
            "predictions": [{"boxes": box, "scores": torch.tensor([[0.1, 0.8]])} for _ in batch],
            "targets": [{"boxes": box + 5, "labels": torch.tensor([[0.0, 1.0]])} for _ in batch],
        }


class Watched(DetectionImages):
    """Remembers how many pictures were held after each batch, and of which frames."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.held: list[list[int]] = []

    def on_validation_batch_end(self, *arguments, **options):
        super().on_validation_batch_end(*arguments, **options)
        self.held.append([int(picture.frame[0, 0, 0]) for picture in self._pictures])


def validate(module, callback, folder, logger=True):
    trainer = Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name=None, version="run") if logger else False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback],
    )
    trainer.validate(module, datamodule=Frames(), verbose=False)


@pytest.mark.parametrize(("num_images", "frames"), [(2, [0, 6]), (6, [0, 1, 3, 6, 7, 9]), (50, list(range(12)))])
def test_pictures_are_spread_over_the_validation_set(tmp_path, num_images, frames):
    callback = Watched(num_images=num_images)
    validate(Detector(), callback, tmp_path, logger=False)
    assert callback.held[-1] == frames
    assert not callback._pictures


def test_a_page_is_logged_to_tensorboard_and_lies_in_the_folder_of_the_run(tmp_path):
    validate(Detector(), DetectionImages(num_images=4), tmp_path)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (image,) = events.Images("val/detections")
    assert image.width == image.height == 2 * 96 * 4 + 4
    assert decode_image(str(tmp_path / "run" / "detections.png")).shape == (3, 2 * 96 * 4 + 4, 2 * 96 * 4 + 4)


def test_nothing_to_show_logs_nothing(tmp_path):
    class Silent(LightningModule):
        def validation_step(self, batch, batch_idx):
            return None

    validate(Silent(), DetectionImages(), tmp_path)


def test_outputs_of_another_kind_are_refused_with_the_way_out(tmp_path):
    class Other(LightningModule):
        def validation_step(self, batch, batch_idx):
            return torch.zeros(())

    with pytest.raises(TypeError, match=r"Other\.validation_step"):
        validate(Other(), DetectionImages(), tmp_path)
