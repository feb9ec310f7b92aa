"""The mutants of the shipped kernels, stage by stage; see `mutants`."""

from .backward import BACKWARD
from .forward import FORWARD, TONALITY
from .positions import POSITIONS
from .resample import RESAMPLE
from .restored import HOST, RESTORED

MUTANTS = [*POSITIONS, *TONALITY, *FORWARD, *RESAMPLE, *BACKWARD, *RESTORED, *HOST]
