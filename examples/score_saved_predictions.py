"""Score saved boxes on your own annotation, without a model and without a config.

    python examples/score_saved_predictions.py videos boxes.csv classes.txt predictions.csv

The predictions are rows of video,seconds,x1,y1,x2,y2,action_id,score: corners as fractions of the frame, ids from 1.
Any program may have written them; `python main.py test --trainer.callbacks+=DetectionFile` does.
"""

import sys

from datamodules.annotations.own_videos import OwnVideos
from datamodules.clip import ClipDataModule
from lightning_modules.commands.score_boxes import score_file
from lightning_modules.metrics.frame_ap import FrameMapSettings


def main() -> None:
    videos, annotations, classes, predictions = sys.argv[1:]
    source = OwnVideos(videos, classes, annotations, val_fraction=1.0)  # all videos are scored
    data = ClipDataModule(source, keyframe_grid=1)  # on every annotated frame
    settings = FrameMapSettings(protocol="ava", iou_threshold=0.5)
    names = data.class_names
    score = score_file(predictions, data.true_keyframes("val"), len(names), settings=settings)
    print(score.text(names))


if __name__ == "__main__":
    main()
