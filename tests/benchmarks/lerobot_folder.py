"""Write a LeRobot data set with the `lerobot` package itself: two cameras, every frame with its number drawn into it.

It runs in an environment of its own, which has `lerobot` (0.3.3 writes v2.1, 0.4 and later v3.0) and nothing of ours:
    PYTHONPATH=tests python tests/benchmarks/lerobot_folder.py FOLDER [EPISODES]
`tests/benchmarks/tracks.py FOLDER` then indexes it and reads frames at random.
"""

import sys
from inspect import signature

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from numbered import COLUMNS, ROWS, picture

FPS = 15
STATE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
CAMERAS = ("observation.images.left", "observation.images.wrist")


def main(folder: str, episodes: int = 40) -> None:
    pictures = {
        name: {"dtype": "video", "shape": (ROWS, COLUMNS, 3), "names": ["height", "width", "channels"]}
        for name in CAMERAS
    }
    numbers = {
        "observation.state": {"dtype": "float32", "shape": (len(STATE),), "names": STATE},
        "action": {"dtype": "float32", "shape": (3,), "names": ["dx", "dy", "dz"]},
    }
    made = LeRobotDataset.create("numbered", FPS, pictures | numbers, root=folder)
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        for frame in range(int(rng.integers(12, 60))):
            state = np.array([episode, frame, 0.5, *rng.uniform(-3, 3, 3), frame % 2], np.float32)
            cameras = {name: picture(episode, frame, camera) for camera, name in enumerate(CAMERAS)}
            row = {**cameras, "observation.state": state, "action": np.full(3, frame / 8, np.float32)}
            task = f"task {episode % 3}"
            if "task" in signature(made.add_frame).parameters:  # up to 0.3
                made.add_frame(row, task=task)
            else:
                made.add_frame({**row, "task": task})
        made.save_episode()
    if hasattr(made, "finalize"):
        made.finalize()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
