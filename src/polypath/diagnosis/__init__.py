"""What was learnt and which way it went: numbers from recorded routings."""

from polypath.diagnosis.load import imbalance, mean_entropy, shares
from polypath.diagnosis.specialisation import (
    Specialisation,
    contingency,
    dependence,
    normalised_mutual_information,
    specialisation,
)
from polypath.diagnosis.transitions import between, membership, transitions

__all__ = [
    "Specialisation",
    "between",
    "contingency",
    "dependence",
    "imbalance",
    "mean_entropy",
    "membership",
    "normalised_mutual_information",
    "shares",
    "specialisation",
    "transitions",
]
