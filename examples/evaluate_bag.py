"""Evaluates a bag in Python: how smoothing changes the scores of `mega replay`, and a number of one's own.

    python evaluate_bag.py my_bag [my_bundle]

The bag has ground truth on /mega/ground_truth. docs/evaluate/ describes other references, and defines the scores.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np

from mega_model.core.errors import InputError
from mega_ros import Recovery, StreamSettings
from mega_ros.replay.frames import open_input
from mega_ros.replay.offline import Run
from mega_ros.replay.reference import open_reference

SHOWN = ["pve", "pa_mpjpe", "acceleration", "recall"]


def evaluate(bag: Path, recovery: Recovery, settings: StreamSettings) -> dict[str, float]:
    """The scores by name: metres, m/s², and shares from 0 to 1."""
    source = open_input([bag])
    reference = open_reference(None, bag, recovery.topology)
    if reference is None:
        raise InputError(f"{bag}: no ground truth on /mega/ground_truth")
    run = Run(recovery, settings, reference)
    sigma = [np.zeros((0, len(recovery.topology.joint_names)))]  # of the joints [P, J] in each frame, metres
    for _frame, people, _camera in run.process(source):
        if people is not None:  # None: the frame cannot be read
            sigma.append(people.joints_sigma)
    return {**run.score.summary(), "unsure": float((np.concatenate(sigma) > 0.2).mean())}


parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
parser.add_argument("bag", type=Path)
parser.add_argument("bundle", nargs="?", default="default")
given = parser.parse_args()
try:
    recovery = Recovery.load(given.bundle)
    found = {smoothing: evaluate(given.bag, recovery, StreamSettings(smoothing=smoothing)) for smoothing in (0.0, 1.0)}
except InputError as error:
    sys.exit(str(error))
print("smoothing", *SHOWN, "joints with a sigma above 0.2 m", sep=", ")
for smoothing, scores in found.items():
    shown = (f"{scores.get(name, np.nan):.4f}" for name in (*SHOWN, "unsure"))  # nan: nobody was compared
    print(smoothing, *shown, sep=", ")
