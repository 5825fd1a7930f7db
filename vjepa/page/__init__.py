"""Pages that people open from disk: one HTML file each, which loads nothing and runs nothing but its own script.

`document` writes one; `player` shows a clip in it, frame by frame. What a page says, the rooms above know.
"""
