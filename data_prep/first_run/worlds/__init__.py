"""Small worlds to learn from on the first run: each a dataclass whose videos are functions of their numbers.

world = Paddles()
for video in world.videos():            # films, then the clips of train, selection and val
    frames, labels = world.render(video)    # uint8 [T, S, S, 3]; a film has no labels
"""
