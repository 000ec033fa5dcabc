"""Detect in a video with an exported student: numpy and onnxruntime, nothing of this repository.

    pip install numpy onnxruntime av
    python run_exported_student.py dsta.onnx street.mp4

The model comes from `python main.py export`; the state at the beginning of a stream lies beside it as .npz. PyAV only
reads the video.
"""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import onnxruntime


class Student:
    """A streaming detector: one frame in, the detections of an earlier one out."""

    def __init__(self, model: str) -> None:
        self.session = onnxruntime.InferenceSession(model)
        self.outputs = [output.name for output in self.session.get_outputs()]
        about = self.session.get_modelmeta().custom_metadata_map
        self.height, self.width = json.loads(about["image_size"])
        self.stride, self.names = json.loads(about["frame_stride"]), json.loads(about["class_names"])
        self.delay = json.loads(about["look_ahead"])  # detections are about the frame so many steps before
        self.state = dict(np.load(model.replace(".onnx", ".npz")))

    def step(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """Take a frame (height, width, 3) uint8 RGB and return boxes, person_scores and action_scores."""
        values = self.session.run(self.outputs, {"frames": frame[None], **self.state})
        found = dict(zip(self.outputs, values, strict=True))
        self.state = {name: found["next_" + name] for name in self.state}
        return {name: found[name][0] for name in ("boxes", "person_scores", "action_scores")}

    def detect(self, frames: Iterable[tuple[np.ndarray, float]]) -> Iterator[tuple[float, dict[str, np.ndarray]]]:
        """Yield the seconds and the detections of every frame, in order."""
        times = []
        for step, (frame, seconds) in enumerate(with_end(frames, self.delay)):
            found = self.step(frame)
            times.append(seconds)
            if step >= self.delay:
                yield times[step - self.delay], found


def with_end(frames: Iterable[tuple[np.ndarray, float]], delay: int) -> Iterator[tuple[np.ndarray, float]]:
    """Repeat the last frame at the end of a video until the detections about it are there."""
    last = None
    for last in frames:
        yield last
    if last is not None:
        yield from itertools.repeat(last, delay)


def main() -> None:
    import av

    model, video = sys.argv[1:]
    student = Student(model)
    shape = {"width": student.width, "height": student.height, "interpolation": "AREA"}
    with av.open(video) as container:
        stream = container.streams.video[0]
        to_video = np.tile([stream.width / student.width, stream.height / student.height], 2)
        pictures = itertools.islice(container.decode(stream), 0, None, student.stride)
        frames = ((picture.to_ndarray(format="rgb24", **shape), picture.time) for picture in pictures)
        for seconds, found in student.detect(frames):
            for box, person, scores in zip(*found.values(), strict=True):
                if person >= 0.5:
                    name = student.names[scores.argmax()]
                    print(f"{seconds:.2f} s", (box * to_video).round(), f"{person:.2f}", name, scores.max())


if __name__ == "__main__":
    main()
