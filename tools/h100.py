"""The GPU that predictions are of: an H100 SXM, whose clock the profiler found at 1.755 GHz under load."""

PROCESSORS = 132
CLOCK = 1.755e9  # cycles a second
