"""Write a LeRobot data set with the `lerobot` package itself: two cameras, every frame with its number drawn into it.

It runs in an environment of its own, which has `lerobot` (0.3.3 writes v2.1, 0.4 and later v3.0) and nothing of ours:
    python tests/benchmarks/lerobot_folder.py FOLDER [EPISODES]
`tests/benchmarks/tracks.py FOLDER` then indexes it and reads frames at random.
"""

import sys
from inspect import signature

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

SIDE, BITS, FPS = 8, 16, 15  # px of a bit, bits of a number, frames per second
STATE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
CAMERAS = ("observation.images.left", "observation.images.wrist")


def picture(number: int) -> np.ndarray:
    """Draw a number as black and white squares, the lowest bit first: uint8 [32, 64, 3]."""
    bits = (number >> np.arange(BITS)) & 1
    squares = np.kron(bits.reshape(4, 4).T, np.ones((SIDE, 2 * SIDE)))
    return np.repeat((16 + 220 * squares).astype(np.uint8)[..., None], 3, axis=-1)


def number_of(episode: int, frame: int, camera: int) -> int:
    return episode << 9 | frame << 1 | camera


def main(folder: str, episodes: int = 40) -> None:
    pictures = {
        name: {"dtype": "video", "shape": picture(0).shape, "names": ["height", "width", "channels"]}
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
            cameras = {name: picture(number_of(episode, frame, camera)) for camera, name in enumerate(CAMERAS)}
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
