"""Evaluates a bag in Python: how smoothing changes the scores of `mega replay`, and a number of one's own.

    python evaluate_bag.py my_bag [my_bundle]

The bag has ground truth on /mega/ground_truth. docs/evaluate/ describes other references, and defines the scores.
"""

import sys
from pathlib import Path

import numpy as np

from mega_ros import Recovery, StreamSettings
from mega_ros.replay.frames import open_input
from mega_ros.replay.offline import Run
from mega_ros.replay.reference import open_reference

SHOWN = ["pve", "pa_mpjpe", "acceleration", "recall"]


def evaluate(bag: Path, recovery: Recovery, settings: StreamSettings) -> dict[str, float]:
    """The scores by name: metres, m/s², and shares from 0 to 1."""
    source = open_input([bag])
    run = Run(recovery, settings, open_reference(None, bag, recovery.topology))
    sigma = [np.zeros((0, len(recovery.topology.joint_names)))]  # of the joints [P, J] in each frame, metres
    for _frame, people, _camera in run.process(source):
        if people is not None:  # None: the frame cannot be read
            sigma.append(people.joints_sigma)
    return {**run.score.summary(), "unsure": float((np.concatenate(sigma) > 0.2).mean())}


recovery = Recovery.load(sys.argv[2] if len(sys.argv) > 2 else "default")
print("smoothing", *SHOWN, "joints with a sigma above 0.2 m", sep=", ")
for smoothing in (0.0, 1.0):
    scores = evaluate(Path(sys.argv[1]), recovery, StreamSettings(smoothing=smoothing))
    print(smoothing, *(f"{scores[name]:.4f}" for name in (*SHOWN, "unsure")), sep=", ")
