"""What a server of routed models stands on: queues, caches, experts on disk, and its numbers."""

from polypath.serving.caches import (
    FIFO,
    LRU,
    Access,
    Belady,
    ExpertCache,
    Policy,
    Random,
    follow,
    replay,
)
from polypath.serving.prefetch import DiskExperts, ExpertStore, save_experts
from polypath.serving.queues import ArrivalQueue, Batch, ExpertQueues, Queue, Unit
from polypath.serving.simulation import Costs, Served, Spread, simulate
from polypath.serving.traces import Request, Route, poisson_trace

__all__ = [
    "FIFO",
    "LRU",
    "Access",
    "ArrivalQueue",
    "Batch",
    "Belady",
    "Costs",
    "DiskExperts",
    "ExpertCache",
    "ExpertQueues",
    "ExpertStore",
    "Policy",
    "Queue",
    "Random",
    "Request",
    "Route",
    "Served",
    "Spread",
    "Unit",
    "follow",
    "poisson_trace",
    "replay",
    "save_experts",
    "simulate",
]
