import itertools

from hypothesis import given
from hypothesis import strategies as st

from polypath.routing.dispatch.pieces import cut

counts = st.lists(st.integers(0, 40), max_size=12)


@given(counts, st.integers(1, 16))
def test_pieces_have_every_row_once_and_in_order(counts, rows):
    owners = [e for e, count in enumerate(counts) for _ in range(count)]
    met = []
    for piece in cut(counts, rows):
        assert piece.start == len(met)
        met += [e for e, size in zip(piece.experts, piece.sizes, strict=True) for _ in range(size)]
        assert piece.stop == len(met)
        assert all(piece.sizes)
    assert met == owners


@given(counts, st.integers(1, 16))
def test_pieces_are_of_the_size_asked_for(counts, rows):
    pieces = cut(counts, rows)
    for piece in pieces:
        assert len(piece) <= rows or (len(piece.experts) == 1 and len(piece) < 2 * rows)
    for a, b in itertools.pairwise(pieces):
        assert len(a) + len(b) > rows or a.experts == b.experts


@given(counts, st.integers(1, 16))
def test_only_later_parts_of_an_expert_resume_it(counts, rows):
    begun = set()
    for piece in cut(counts, rows):
        assert piece.resumed == (piece.experts[0] in begun)
        assert not piece.resumed or len(piece.experts) == 1
        begun.update(piece.experts)
