"""A trained model goes in, a changed model comes out, and a report of what was done."""

from polypath.surgery.align import AlignConfig, Aligned, align
from polypath.surgery.attribution import affinity, targets
from polypath.surgery.calibration import Calibration, calibrate, calibrating
from polypath.surgery.compress import shed, split_experts
from polypath.surgery.convert import Cut, Method, convert, routed_layer
from polypath.surgery.distiller import KnowledgeDistiller
from polypath.surgery.factorllm import FactorLLM, PriorApproximate, prior_label
from polypath.surgery.freezing import Trainable, changed, fingerprints
from polypath.surgery.granular import Granular
from polypath.surgery.layerwise import calibrate_pieces, convert_folder, merge_folder
from polypath.surgery.merge import Merge, merge, merge_to_native
from polypath.surgery.neighbourhood import NeighbourhoodConstraint, Reference, constrained_loss
from polypath.surgery.neighbours import Sample
from polypath.surgery.objectives import GA, GDIFF, NPO, RMU
from polypath.surgery.readme import ReadMe
from polypath.surgery.recovery import Recovery, recover
from polypath.surgery.report import Check, Move, Size, Surgery
from polypath.surgery.slices import DenseLayer, Slices, dense_layer
from polypath.surgery.supervision import Lessons, Target, distance, supervise
from polypath.surgery.tuning import (
    FactorLoss,
    Tuning,
    teachers_of,
    tune_experts,
    tune_factored,
    tune_granular,
    tune_pregated,
    tune_router,
)
from polypath.surgery.unlearn import Unlearned, Unlearning, unlearn

__all__ = [
    "GA",
    "GDIFF",
    "NPO",
    "RMU",
    "AlignConfig",
    "Aligned",
    "Calibration",
    "Check",
    "Cut",
    "DenseLayer",
    "FactorLLM",
    "FactorLoss",
    "Granular",
    "KnowledgeDistiller",
    "Lessons",
    "Merge",
    "Method",
    "Move",
    "NeighbourhoodConstraint",
    "PriorApproximate",
    "ReadMe",
    "Recovery",
    "Reference",
    "Sample",
    "Size",
    "Slices",
    "Surgery",
    "Target",
    "Trainable",
    "Tuning",
    "Unlearned",
    "Unlearning",
    "affinity",
    "align",
    "calibrate",
    "calibrate_pieces",
    "calibrating",
    "changed",
    "constrained_loss",
    "convert",
    "convert_folder",
    "dense_layer",
    "distance",
    "fingerprints",
    "merge",
    "merge_folder",
    "merge_to_native",
    "prior_label",
    "recover",
    "routed_layer",
    "shed",
    "split_experts",
    "supervise",
    "targets",
    "teachers_of",
    "tune_experts",
    "tune_factored",
    "tune_granular",
    "tune_pregated",
    "tune_router",
    "unlearn",
]
