"""A trained model goes in, a changed model comes out, and a report of what was done."""

from polypath.surgery.freezing import Trainable, changed, fingerprints
from polypath.surgery.report import Check, Move, Size, Surgery
from polypath.surgery.supervision import Lessons, Target, distance, supervise

__all__ = [
    "Check",
    "Lessons",
    "Move",
    "Size",
    "Surgery",
    "Target",
    "Trainable",
    "changed",
    "distance",
    "fingerprints",
    "supervise",
]
