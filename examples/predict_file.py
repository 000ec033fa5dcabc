"""Print who is in a video and what they do.

python examples/predict_file.py results/weights/dsta.pt street.mp4
"""

import sys

from lightning_modules.session import StreamSession

weights, video = sys.argv[1:]  # results/weights/dsta.pt street.mp4
session = StreamSession.from_pretrained(weights)
for prediction in session.predict(video):
    for person in prediction.people:
        if person.person_score >= 0.5:
            actions = [name for name, score in person.actions.items() if score >= 0.2]
            print(f"{prediction.seconds:.2f} s", person.track, [round(side) for side in person.box], actions)
