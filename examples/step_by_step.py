"""Give frames one by one, in a loop of your own, and take predictions as they become due.

    python examples/step_by_step.py results/weights/dsta.pt street.mp4

The frames come from a file here. Any RGB array (H, W, 3) of uint8 will do: OpenCV's are BGR, so turn them round.
"""

import sys
from collections.abc import Iterator

import numpy as np

from lightning_modules.evaluation.tracked import TrackedFrame
from lightning_modules.session import StreamSession


def frames_of(video: str) -> Iterator[tuple[np.ndarray, float]]:
    """Yield every frame with its time stamp in seconds; put your own frames here."""
    import av

    with av.open(video) as container:
        for picture in container.decode(video=0):
            yield picture.to_ndarray(format="rgb24"), float(picture.time)


def show(prediction: TrackedFrame) -> None:
    """Print the likeliest action of everybody in a frame."""
    for person in prediction.people:
        action = max(person.actions, key=person.actions.__getitem__)
        print(f"{prediction.seconds:.2f} s person {person.track}: {action} {person.actions[action]:.2f}")


def main() -> None:
    weights, video = sys.argv[1:]
    session = StreamSession.from_pretrained(weights)
    print(f"predictions come {session.look_ahead} sampled frames late")
    for frame, seconds in frames_of(video):
        prediction = session.step(frame, seconds)
        if prediction is not None:  # between sampled frames, and before the delay is over, there is none
            show(prediction)
    for prediction in session.finish():
        show(prediction)


if __name__ == "__main__":
    main()
