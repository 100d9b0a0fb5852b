import pytest

from polypath.cli.progress import progress


@pytest.mark.parametrize("total", [2, None])
def test_lines_are_told_and_output_stays_clean(
    total: int | None, capsys: pytest.CaptureFixture
) -> None:
    with progress(total) as told:
        told("one thing")
        told("another thing")
    said = capsys.readouterr()
    assert said.out == "" and "another thing" in said.err
