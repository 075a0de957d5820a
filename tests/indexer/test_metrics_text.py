"""Reading the text format of Prometheus."""

import pytest

from indexer.metrics_text import read_samples

TEXT = """# HELP a_total counts
# TYPE a_total counter
a_total{x="1",y="a \\"b\\" {c}"} 3.0
a_total{x="2"} NaN
b 7
c_bucket{le="+Inf"} 5 1700000000
"""


def test_wanted_series_are_read_with_their_labels() -> None:
    (first, second) = read_samples(TEXT, {"a_total"}.__contains__)
    assert (first.name, first.labels, first.value) == ("a_total", {"x": "1", "y": 'a "b" {c}'}, 3.0)
    assert second.value != second.value


def test_names_end_at_labels_or_white_space() -> None:
    samples = read_samples('b\t7\nb 8\nb{x="1"} 9\nbc 10\n', "b".__eq__)
    assert [(sample.name, sample.value) for sample in samples] == [("b", 7.0), ("b", 8.0), ("b", 9.0)]


def test_lines_that_are_not_wanted_are_not_parsed() -> None:
    assert [sample.value for sample in read_samples("no { text\n" + TEXT + "\x00\n", "b".__eq__)] == [7.0]


@pytest.mark.parametrize("line", ['a{x="1} 3', "a x", "a{x=1} 3", "a"])
def test_a_wanted_line_in_another_format_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        list(read_samples(line + "\n", "a".__eq__))


def test_an_empty_text_has_no_samples() -> None:
    assert list(read_samples("", lambda name: True)) == []
