import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.serving import Request, poisson_trace

# Every token is its own place, so that a passage tells where it is from.
DOCUMENTS = {
    "even": [torch.arange(0, 4000, 2), torch.arange(10_000, 10_600, 2)],
    "odd": [torch.arange(1, 5001, 2)],
}


def itself(ids: Tensor) -> Tensor:
    return ids


def trace(requests: int = 400, load: float = 100.0, seed: int = 0) -> list[Request]:
    return poisson_trace(DOCUMENTS, itself, requests, load, prompt=30, generated=50, seed=seed)


def test_passages_are_parts_of_documents() -> None:
    for request in trace():
        ids = request.prompt + request.generated
        assert all(b - a == 2 for a, b in pairwise(ids))
        assert ids[0] % 2 == (request.source == "odd")
        assert any(set(ids) <= set(text.tolist()) for text in DOCUMENTS[request.source])
        assert len(request) == len(ids)


def test_sources_are_equally_likely_and_documents_by_length() -> None:
    found = trace(2000)
    even = [request for request in found if request.source == "even"]
    assert len(even) / 2000 == pytest.approx(0.5, abs=0.04)
    short = [request for request in even if request.prompt[0] >= 10_000]
    assert len(short) / len(even) == pytest.approx(300 / 2300, abs=0.04)


def test_lengths_are_geometric() -> None:
    found = trace(4000)
    for values, mean in (
        ([len(r.prompt) for r in found], 30),
        ([len(r.generated) for r in found], 50),
    ):
        assert np.mean(values) == pytest.approx(mean, rel=0.05)
        assert np.mean(np.asarray(values) <= mean) == pytest.approx(1 - math.exp(-1), abs=0.03)


def test_arrivals_are_a_poisson_process_of_the_offered_load() -> None:
    found = trace(4000, load=100.0)
    times = [request.arrival for request in found]
    tokens = sum(map(len, found))
    assert times == sorted(times) and times[0] > 0
    assert tokens / times[-1] == pytest.approx(100.0, rel=0.05)
    gaps = np.diff(times)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05)
    assert np.mean(gaps <= np.mean(gaps)) == pytest.approx(1 - math.exp(-1), abs=0.03)
    saturated = poisson_trace(DOCUMENTS, itself, 5, math.inf, 30, 50)
    assert {request.arrival for request in saturated} == {0.0}


def test_the_seed_decides_and_the_load_only_stretches() -> None:
    assert trace(20) == trace(20)
    assert trace(20) != trace(20, seed=1)
    for slow, fast in zip(trace(20), trace(20, load=400.0), strict=True):
        assert (slow.prompt, slow.generated) == (fast.prompt, fast.generated)
        assert slow.arrival == pytest.approx(4 * fast.arrival)


def test_the_route_sees_a_whole_passage_without_gradients() -> None:
    seen = []
    weight = torch.ones((), requires_grad=True)

    def route(ids: Tensor) -> Tensor:
        seen.append(ids)
        assert not (weight * 2).requires_grad
        return ids % 3

    found = poisson_trace(DOCUMENTS, route, 10, 1.0, 8, 8)
    for ids, request in zip(seen, found, strict=True):
        assert (ids % 3).tolist() == [*request.prompt, *request.generated]


def test_short_documents_give_a_prompt_and_one_token() -> None:
    found = poisson_trace({"short": [torch.tensor([4, 2])]}, itself, 5, 1.0, 100, 100)
    assert {(request.prompt, request.generated) for request in found} == {((4,), (2,))}


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"requests=0"):
        poisson_trace(DOCUMENTS, itself, 0, 1.0, 8, 8)
    with pytest.raises(InputError, match=r"tokens_per_second=0"):
        poisson_trace(DOCUMENTS, itself, 1, 0.0, 8, 8)
    with pytest.raises(InputError, match=r"no documents"):
        poisson_trace({}, itself, 1, 1.0, 8, 8)
    for texts in ([], [torch.arange(1)]):
        with pytest.raises(InputError, match=r"'poor' has (no|a) document"):
            poisson_trace({"poor": texts}, itself, 1, 1.0, 8, 8)
    for route in (lambda ids: ids[1:], lambda ids: ids - 10**6, lambda ids: ids.float()):
        with pytest.raises(InputError, match=r"the expert of each"):
            poisson_trace(DOCUMENTS, route, 1, 1.0, 8, 8)
    with pytest.raises(InputError, match=r"a prompt without tokens"):
        Request(0.0, (), (1,))
