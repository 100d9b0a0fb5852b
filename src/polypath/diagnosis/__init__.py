"""What was learnt and which way it went: numbers from recorded routings."""

from polypath.diagnosis.activity import activity, follows_entropy
from polypath.diagnosis.coupling import LayerCoupling, layer_coupling, layer_couplings
from polypath.diagnosis.information import Balance, balance, expert_similarity, gate_information
from polypath.diagnosis.load import (
    gate_mass,
    imbalance,
    mean_entropy,
    share_of,
    shares,
    underused,
    violations,
)
from polypath.diagnosis.specialisation import (
    Specialisation,
    contingency,
    dependence,
    normalised_mutual_information,
    specialisation,
)
from polypath.diagnosis.transitions import between, membership, transitions

__all__ = [
    "Balance",
    "LayerCoupling",
    "Specialisation",
    "activity",
    "balance",
    "between",
    "contingency",
    "dependence",
    "expert_similarity",
    "follows_entropy",
    "gate_information",
    "gate_mass",
    "imbalance",
    "layer_coupling",
    "layer_couplings",
    "mean_entropy",
    "membership",
    "normalised_mutual_information",
    "share_of",
    "shares",
    "specialisation",
    "transitions",
    "underused",
    "violations",
]
