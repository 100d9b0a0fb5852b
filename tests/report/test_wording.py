import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.report import Claim, Table
from polypath.report.wording import aligned, duration, measured, number, rows, verdict, visible

finite = st.floats(-1e9, 1e9)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        ("a", "a"),
        (0.0, "0"),
        (-0.012346, "−0.01235"),
        (1234567, "1,234,567"),
        (-1234.5, "−1,234"),
        (2.5e-7, "2.5e−07"),
        (1e22, "1e+22"),
    ],
)
def test_number(value, text: str) -> None:
    assert number(value) == text


@given(finite)
def test_a_number_is_right_to_four_digits(value: float) -> None:
    shown = float(number(value).replace("−", "-").replace(",", ""))
    assert shown == pytest.approx(value, rel=6e-4)


@given(st.lists(st.none() | finite, max_size=6))
def test_aligned_numbers_have_the_same_decimals(values: list[float | None]) -> None:
    shown = aligned(values, 3)
    decimals = {len(text.partition(".")[2]) for text in shown if text}
    assert len(decimals) <= 1
    largest = max((abs(v) for v in values if v is not None), default=0)
    for value, text in zip(values, shown, strict=True):
        if value is None:
            assert text == ""
        else:
            shown_value = float(text.replace("−", "-").replace(",", ""))
            assert abs(shown_value - value) <= max(0.006 * largest, 1e-300)


def test_columns_of_numbers_are_aligned() -> None:
    table = Table("t", ["a", "b", "c", "d"], [["x", 2.75, 1e-5, 3], ["y", 12.5, 2.0, None]])
    assert rows(table) == [["x", "2.75", "1e−05", "3"], ["y", "12.50", "2", "–"]]
    assert rows(Table("t", ["a"], [])) == []


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.04484, [-0.03111, 0.12079], ["0.045", "−0.031", "0.121"]),
        (21.3456, [21.3, 21.4], ["21.346", "21.300", "21.400"]),
        (1520.0, [1000.0, 2040.0], ["1,520", "1,000", "2,040"]),
        (0.5, [0.5, 0.5], ["0.5", "0.5", "0.5"]),
        (0.123456, None, ["0.1235"]),
        (None, None, ["–"]),
        (1 / 21, (1 / 21 - 1e-17, 1 / 21 + 1e-17), ["0.04762"] * 3),
    ],
)
def test_claims_are_as_exact_as_their_interval(value, interval, text) -> None:
    assert measured(Claim("c", "s", "b", value, interval, 3, True)) == text


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        ([], "No claims were tested."),
        ([True], "1 of 1 claim held."),
        ([True, True, "undecided"], "2 of 3 claims held, 1 undecided."),
        ([False, "undecided", False], "0 of 3 claims held, 2 did not, 1 undecided."),
    ],
)
def test_verdict(held, sentence: str) -> None:
    assert verdict([Claim("c", "s", "b", 0.0, None, 1, h) for h in held]) == sentence


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59.0, "59 s"), (74, "1 min"), (3599, "1 h 0 min"), (12345.6, "3 h 26 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.text(st.characters(exclude_categories=())))
def test_shown_text_has_as_many_characters_and_no_control(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    shown.encode()
    assert not any(ord(c) < 32 and c not in "\t\n" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 for c in shown)


def test_shown_text_is_the_same_where_it_can_be() -> None:
    assert visible("a\tb\n é 🦉") == "a\tb\n é 🦉"
    assert visible("\x00\r\x1b\x7f\x85\ud800") == "␀␍␛␡��"
