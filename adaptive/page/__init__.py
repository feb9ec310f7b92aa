"""The page of `adaptive-window serve`: two songs in, windows to see, patterns to hear. Needs the extra `[page]`.

Nothing here computes music: `composing` and `matching` call what the commands `compose` and `refine` call.
"""
