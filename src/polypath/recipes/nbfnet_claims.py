"""What NBFNet's paper and its specification say that its recipe's graphs can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polypath.recipes.trials import Facts
from polypath.report import Claim, judge

PAPER = "NBFNet (2021)"
KINSHIP, PYTHON, FREEBASE, WORDNET, CORA = "kinship", "python", "fb237_v1", "WN18RR_v1", "cora"
PUBLISHED = {FREEBASE: (0.834, 0.80, 0.642), WORDNET: (0.948, 0.93, 0.825)}
"""Hits@10 against 50 entities: NBFNet's, what is asked of a short training, and GraIL's."""
NEAR = 0.02
DEEP, SHALLOW, EMBEDDED = "NBFNet, 3 layers", "NBFNet, 1 layer", ("TransE", "DistMult")
LEARNT, USUAL, ABLATED = "NBFNet", "popularity", ("sum", "mean")

ByArm = Mapping[str, list[Facts]]
"""By arm, what came out under each seed."""


def of(facts: Sequence[Facts], *names: str) -> list[float]:
    """A measure by seed."""
    found = []
    for one in facts:
        for name in names:
            one = one[name]
        found.append(float(one))  # type: ignore[arg-type]
    return found


def claims_on(name: str, facts: ByArm) -> list[Claim]:
    """What the paper says that a graph can tell."""
    if name == KINSHIP:
        return claims_on_kinship(facts)
    if name == CORA:
        return claims_on_citations(facts)
    mrr = {arm: of(own, "test", "mrr") for arm, own in facts.items()}
    what = f"{name}: entities that were never seen are ranked better (MRR, difference)"
    if name not in (*PUBLISHED, PYTHON):
        what = f"{name}: paths rank better (MRR, difference)"
    found = [judge(what, f"{PAPER}, inductive results", USUAL, mrr[LEARNT], mrr[USUAL], "higher")]
    for kind in ABLATED:
        if kind in mrr:
            found.append(
                judge(
                    f"{name}: PNA ranks better than {kind} (MRR, difference)",
                    f"{PAPER}, ablation: 0.415 against 0.388 and 0.384 on FB15k-237",
                    kind,
                    mrr[LEARNT],
                    mrr[kind],
                    "higher",
                )
            )
    if name in PUBLISHED:
        found += claims_on_published(name, of(facts[LEARNT], "test", "hits@10 of 50"))
    return found


def claims_on_published(name: str, hits: list[float]) -> list[Claim]:
    """Hits@10 against 50 entities, beside published numbers."""
    best, asked, grail = PUBLISHED[name]
    what = f"{name}: Hits@10 against 50"
    return [
        judge(
            f"{what} is within {NEAR} of the published {best} (difference)",
            f"{PAPER}, inductive results",
            f"{best}",
            hits,
            [best] * len(hits),
            "higher",
            threshold=-NEAR,
        ),
        judge(
            f"{what} is above {asked}",
            "specification, after a short training",
            f"{asked}",
            hits,
            [0.0] * len(hits),
            "higher",
            threshold=asked,
        ),
        judge(
            f"{what} is above GraIL's (difference)",
            f"{PAPER}, inductive results: {grail}",
            f"{grail}",
            hits,
            [grail] * len(hits),
            "higher",
        ),
    ]


def claims_on_kinship(facts: ByArm) -> list[Claim]:
    """The rule of the specification's small experiment."""
    none = [0.0] * len(facts[DEEP])
    mrr = {arm: of(own, "test", "mrr") for arm, own in facts.items()}
    embedded = [max(mrr[kind][n] for kind in EMBEDDED) for n in range(len(none))]
    source = "specification, small experiment"
    above = {"better": "higher"}
    return [
        judge(
            "kinship: three layers find another tree's grandparents (MRR above 0.95)",
            source,
            "0.95",
            mrr[DEEP],
            none,
            threshold=0.95,
            **above,  # type: ignore[arg-type]
        ),
        judge(
            "kinship: one layer cannot (MRR below 0.3)",
            source,
            "0.3",
            mrr[SHALLOW],
            none,
            threshold=0.3,
        ),
        judge(
            "kinship: embeddings cannot (MRR, difference to the better one)",
            source,
            "TransE, DistMult",
            mrr[DEEP],
            embedded,
            threshold=0.5,
            **above,  # type: ignore[arg-type]
        ),
        judge(
            "kinship: parent, parent explains tails that are ranked first (share above 0.9)",
            source,
            "0.9",
            of(facts[DEEP], "rule"),
            none,
            threshold=0.9,
            **above,  # type: ignore[arg-type]
        ),
    ]


def claims_on_citations(facts: ByArm) -> list[Claim]:
    """Cora's links, beside the published numbers and the Katz index of the same split."""
    area = of(facts["NBFNet"], "auroc")
    return [
        judge(
            "cora: AUROC is above 0.945",
            "specification, after 20 epochs",
            "0.945",
            area,
            [0.0] * len(area),
            "higher",
            threshold=0.945,
        ),
        judge(
            f"cora: AUROC is within {NEAR} of the published 0.956 (difference)",
            f"{PAPER}, homogeneous results",
            "0.956",
            area,
            [0.956] * len(area),
            "higher",
            threshold=-NEAR,
        ),
        judge(
            "cora: what is learnt beats its fixed case (AUROC, difference)",
            f"{PAPER}, homogeneous results: 0.956 against 0.834",
            "Katz",
            area,
            of(facts["Katz"], "auroc"),
            "higher",
        ),
    ]
