"""The context that surrounds routed layers."""

import threading

import pytest
import torch

from polypath.errors import InputError
from polypath.routing import RoutingContext, current, given


def test_given_reaches_inside_and_ends_with_the_block() -> None:
    mask = torch.ones(3, dtype=torch.bool)
    with given(mask=mask, step=1) as context:
        assert current() is context
        with given(step=2):
            assert (current().mask, current().step) == (mask, 2)
        with pytest.raises(KeyError), given(step=3):
            raise KeyError
        assert current() is context
    assert current().mask is None
    assert current().step is None


def test_other_threads_have_their_own() -> None:
    seen = []
    with given(step=1):
        thread = threading.Thread(target=lambda: seen.append(current().step))
        thread.start()
        thread.join()
    assert seen == [None]


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(InputError, match="no field 'maks', 'tokns'"), given(tokns=1, maks=2):
        pass


def test_what_is_needed_and_missing_is_named() -> None:
    assert RoutingContext(step=0).need("step", "Annealed") == 0
    with pytest.raises(InputError, match=r"Annealed needs `step` .* given none"):
        RoutingContext().need("step", "Annealed")
