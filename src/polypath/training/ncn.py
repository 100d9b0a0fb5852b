"""The settings of NCN and NCNC that their authors publish, by data set.

Source: NCN (Wang et al. 2024, arXiv 2302.00890), the scripts of the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from polypath.errors import unknown
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.ncn import Calibration, NCNCConfig
from polypath.training.links import LinkTraining


@dataclass(frozen=True)
class Published:
    """What is trained, how, and by what it is judged.

    hits: K of Hits@K; None for the mean reciprocal rank. valid_edges: as `LinkTask` has it.
    """

    predictor: NCNCConfig
    training: LinkTraining
    hits: int | None = 100
    valid_edges: bool = False


def _small(**values: Any) -> EncoderConfig:
    return EncoderConfig(1, convolution="pure-gcn", layers=1, jumping=True, **values)


PUBLISHED = {
    "cora": Published(
        NCNCConfig(
            _small(input_dropout=0.7, tail_dropout=0.3, dropout=0.05),
            dropout=0.05,
            edge_dropout=0.4,
            calibration=Calibration(4.3, 2.8, 0.75, 1.0),
        ),
        LinkTraining(100, 1152, 0.0043, 0.0024),
    ),
    "citeseer": Published(
        NCNCConfig(
            _small(input_dropout=0.4, dropout=0.75),
            dropout=0.55,
            two_layers=True,
            calibration=Calibration(6.5, 4.4, 0.75, 0.4),
        ),
        LinkTraining(100, 384, 0.0085, 0.0078),
    ),
    "pubmed": Published(
        NCNCConfig(
            _small(input_dropout=0.3, dropout=0.1),
            dropout=0.05,
            calibration=Calibration(5.3, 0.5, 0.5, 0.3),
        ),
        LinkTraining(100, 2048, 0.0097, 0.002),
    ),
    "collab": Published(
        NCNCConfig(
            EncoderConfig(
                1,
                layers=1,
                dim=64,
                input_dropout=0.25,
                tail_dropout=0.05,
                dropout=0.1,
                edge_dropout=0.25,
                norm=True,
                residual=True,
            ),
            dropout=0.3,
            calibration=Calibration(2.5, 6.0, 0.1, 1.05),
        ),
        LinkTraining(100, 65536, 0.0082, 0.0037),
        hits=50,
        valid_edges=True,
    ),
    "ppa": Published(
        NCNCConfig(
            EncoderConfig(
                1, ids=True, layers=3, dim=64, edge_dropout=0.1, norm=True, residual=True
            ),
            dropout=0.1,
            transform=False,
            calibration=Calibration(4.0, 8.5, 0.1, 0.9),
        ),
        LinkTraining(25, 16384, 0.0013, 0.0013),
    ),
    "ddi": Published(
        NCNCConfig(
            EncoderConfig(
                1,
                ids=True,
                convolution="pure-sum",
                layers=1,
                dim=224,
                input_dropout=0.05,
                dropout=0.4,
                residual=True,
            ),
            dropout=0.6,
            two_layers=True,
            tail_activation=False,
            calibration=Calibration(10.0, 3.0, 0.1, 0.5),
        ),
        LinkTraining(100, 24576, 0.0021, 0.0018),
        hits=20,
    ),
    "citation2": Published(
        NCNCConfig(
            EncoderConfig(
                1,
                convolution="pure-gcn",
                layers=3,
                dim=64,
                tail_dropout=0.3,
                dropout=0.2,
                residual=True,
            ),
            dropout=0.2,
            calibration=Calibration(7.0, 4.7, 0.3, 1.0),
            sampled=128,
            sampled_in_test=128,
        ),
        LinkTraining(20, 32768, 0.0088, 0.0058, removal=False),
        hits=None,
    ),
}
"""By data set, for one input; see `published_ncn`."""

_COMPLETED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddi": ({}, {"epochs": 2, "encoder_rate": 0.0, "rate": 0.0025}),
    "citation2": (
        {"calibration": Calibration(1.4, -0.3, 0.25), "sampled": 96, "sampled_in_test": 96},
        {"encoder_rate": 0.0, "rate": 0.001},
    ),
}
"""What NCNC changes, of the predictor and of training, where it starts from a trained NCN."""


def published_ncn(name: str, inputs: int, completed: bool = False) -> Published:
    """Settings for a data set with so many features, or ids ("ppa": species; "ddi": nodes).

    completed: those of NCNC; else of NCN, as NCNC of depth 0. NCNC starts from nothing, but from a
    trained NCN whose encoder rests on "ddi" and "citation2". The authors take features as they are:
    on Cora, Citeseer and Pubmed, `planetoid(name).x > 0`. Raises InputError for other names.
    """
    if name not in PUBLISHED:
        raise unknown("data set", name, PUBLISHED)
    found = PUBLISHED[name]
    changed: tuple[dict[str, Any], ...] = _COMPLETED.get(name, ({}, {})) if completed else ({}, {})
    encoder = replace(found.predictor.encoder, inputs=inputs)
    predictor = replace(found.predictor, encoder=encoder, depth=int(completed), **changed[0])
    return replace(found, predictor=predictor, training=replace(found.training, **changed[1]))
