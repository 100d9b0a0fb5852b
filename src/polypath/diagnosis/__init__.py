"""What was learnt and which way it went: numbers from recorded routings."""

from polypath.diagnosis.activity import activity, follows_entropy
from polypath.diagnosis.complexity import effective_dimension, routed_kernel
from polypath.diagnosis.consistency import roughness, routing_cosines
from polypath.diagnosis.coupling import LayerCoupling, layer_coupling, layer_couplings
from polypath.diagnosis.faithfulness import (
    Agreement,
    Gaps,
    Probe,
    TraceAccuracy,
    attention_agreement,
    gaps,
    linear_cka,
    linear_probe,
    relative_drift,
    trace_accuracy,
)
from polypath.diagnosis.fluctuation import Fluctuation, fluctuation, heaviest, noise_on_routers
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
from polypath.diagnosis.memorisation import generalised, memorised
from polypath.diagnosis.modality import (
    chance_overlap,
    stream_usage,
    usage_entropy,
    usage_overlap,
)
from polypath.diagnosis.pathways import (
    Pathway,
    pathway_distance,
    pathway_distances,
    pathways,
    sample_gates,
    spelled,
    window_pathways,
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
    "Agreement",
    "Balance",
    "Fluctuation",
    "Gaps",
    "LayerCoupling",
    "Pathway",
    "Probe",
    "Specialisation",
    "TraceAccuracy",
    "activity",
    "attention_agreement",
    "balance",
    "between",
    "chance_overlap",
    "contingency",
    "dependence",
    "effective_dimension",
    "expert_similarity",
    "fluctuation",
    "follows_entropy",
    "gaps",
    "gate_information",
    "gate_mass",
    "generalised",
    "heaviest",
    "imbalance",
    "layer_coupling",
    "layer_couplings",
    "linear_cka",
    "linear_probe",
    "mean_entropy",
    "membership",
    "memorised",
    "noise_on_routers",
    "normalised_mutual_information",
    "pathway_distance",
    "pathway_distances",
    "pathways",
    "relative_drift",
    "roughness",
    "routed_kernel",
    "routing_cosines",
    "sample_gates",
    "share_of",
    "shares",
    "specialisation",
    "spelled",
    "stream_usage",
    "trace_accuracy",
    "transitions",
    "underused",
    "usage_entropy",
    "usage_overlap",
    "violations",
    "window_pathways",
]
