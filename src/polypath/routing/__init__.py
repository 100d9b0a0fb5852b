"""Who serves whom: routing record, routers, losses, dispatch, the routed layer, the recorder."""

from polypath.routing.attention import AttentionRouter, AttentionScorer
from polypath.routing.autonomous import AutonomousRouter, AutonomousScorer
from polypath.routing.auxiliary import (
    AuxiliaryLoss,
    Entropy,
    Importance,
    LayerLoss,
    LoadBalance,
    RouterZ,
    whole_batch,
)
from polypath.routing.candidates import Candidates, OnlyExperts
from polypath.routing.context import Attention, RoutingContext, current, given
from polypath.routing.coupling import Coupling, Orthogonality
from polypath.routing.dispatch import dispatch
from polypath.routing.dynamic import ChosenGates, DynamicRouter, GateScorer
from polypath.routing.gates import HardGate, SigmoidGate, SoftmaxGate, UniformGate
from polypath.routing.layer import MoE, losses, routed_layers, update_biases
from polypath.routing.pregating import PregatingScorer
from polypath.routing.record import Routing
from polypath.routing.recorder import Routes, record, replay
from polypath.routing.recurrent import RecurrentRouter, RecurrentScorer
from polypath.routing.routers import (
    ExpertChoiceRouter,
    HashRouter,
    Router,
    SoftRouter,
    TopKRouter,
)
from polypath.routing.scaling import ProgressiveScaling
from polypath.routing.schedules import schedule
from polypath.routing.scorers import CosineScorer, LinearScorer, MLPScorer, NoisyLinearScorer
from polypath.routing.selection import All, ExpertChoice, FirstCome, PerSlice, SelectionBias, TopK
from polypath.routing.similarity import SimilarityRouter, SimilarityScorer
from polypath.routing.thresholds import Threshold

__all__ = [
    "All",
    "Attention",
    "AttentionRouter",
    "AttentionScorer",
    "AutonomousRouter",
    "AutonomousScorer",
    "AuxiliaryLoss",
    "Candidates",
    "ChosenGates",
    "CosineScorer",
    "Coupling",
    "DynamicRouter",
    "Entropy",
    "ExpertChoice",
    "ExpertChoiceRouter",
    "FirstCome",
    "GateScorer",
    "HardGate",
    "HashRouter",
    "Importance",
    "LayerLoss",
    "LinearScorer",
    "LoadBalance",
    "MLPScorer",
    "MoE",
    "NoisyLinearScorer",
    "OnlyExperts",
    "Orthogonality",
    "PerSlice",
    "PregatingScorer",
    "ProgressiveScaling",
    "RecurrentRouter",
    "RecurrentScorer",
    "Router",
    "RouterZ",
    "Routes",
    "Routing",
    "RoutingContext",
    "SelectionBias",
    "SigmoidGate",
    "SimilarityRouter",
    "SimilarityScorer",
    "SoftRouter",
    "SoftmaxGate",
    "Threshold",
    "TopK",
    "TopKRouter",
    "UniformGate",
    "current",
    "dispatch",
    "given",
    "losses",
    "record",
    "replay",
    "routed_layers",
    "schedule",
    "update_biases",
    "whole_batch",
]
