from dataclasses import asdict

import pytest

from polypath.errors import InputError
from polypath.graphs.ncn import NCNC, Calibration
from polypath.training.ncn import PUBLISHED, published_ncn


def parameters(name: str, inputs: int) -> int:
    return sum(p.numel() for p in NCNC(published_ncn(name, inputs).predictor).parameters())


def test_networks_have_as_many_parameters_as_ogb_lists() -> None:
    assert parameters("ppa", 58) == 33_538
    # The authors' embedding has one row more than there are drugs.
    assert parameters("ddi", 4267 + 1) == 1_412_098


@pytest.mark.parametrize("name", PUBLISHED)
def test_ncn_is_ncnc_that_completes_nothing(name: str) -> None:
    plain, completed = (published_ncn(name, 9, depth) for depth in (False, True))
    assert (plain.predictor.depth, completed.predictor.depth) == (0, 1)
    assert plain.predictor.encoder == completed.predictor.encoder
    assert plain.predictor.encoder.inputs == 9
    same = plain.training == completed.training
    assert same is (name not in ("ddi", "citation2"))


def test_what_completes_a_trained_model_rests_its_encoder() -> None:
    ddi, citation = (published_ncn(name, 9, True) for name in ("ddi", "citation2"))
    assert (ddi.training.epochs, ddi.training.encoder_rate, ddi.training.rate) == (2, 0, 0.0025)
    assert ddi.training.removal and not citation.training.removal
    assert citation.predictor.calibration == Calibration(1.4, -0.3, 0.25, 1.0)
    assert citation.predictor.sampled == citation.predictor.sampled_in_test == 96
    assert published_ncn("citation2", 9).predictor.sampled == 128


def test_constants_of_cora() -> None:
    found = published_ncn("cora", 1433, True)
    predictor, encoder = asdict(found.predictor), asdict(found.predictor.encoder)
    assert predictor["calibration"] == {"scale": 4.3, "offset": 2.8, "prior": 0.75, "weight": 1.0}
    wanted = {"input_dropout": 0.7, "tail_dropout": 0.3, "dropout": 0.05, "edge_dropout": 0.0}
    assert encoder | wanted | {"jumping": True, "layers": 1, "dim": 256} == encoder
    assert (predictor["dropout"], predictor["edge_dropout"]) == (0.05, 0.4)
    assert found.hits == 100 and not found.valid_edges


def test_other_names_are_told() -> None:
    with pytest.raises(InputError, match="did you mean 'citeseer'"):
        published_ncn("citeser", 3)
