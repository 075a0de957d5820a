"""Reading the text format of Prometheus."""

import pytest

from indexer.metrics_text import LINE_LENGTH_MAX, LINES_MAX, read_samples

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


def test_lines_of_any_length_and_number_that_are_not_wanted_are_passed_over() -> None:
    text = "x" * 2**20 + " 1\n" + "y 1\n" * 2 * LINES_MAX + "b 7\n"
    assert [sample.value for sample in read_samples(text, "b".__eq__)] == [7.0]


def test_a_wanted_line_may_have_so_many_characters_and_there_may_be_so_many() -> None:
    longest = f'b{{x="{"y" * (LINE_LENGTH_MAX - 9)}"}} 7'
    assert len(longest) == LINE_LENGTH_MAX
    assert len(list(read_samples(f"{longest}\n{longest}\n", "b".__eq__))) == 2
    assert len(list(read_samples("b 7\n" * LINES_MAX, "b".__eq__))) == LINES_MAX
    for text in (f"{longest}1\n", "b 7\n" * (LINES_MAX + 1), 'b{a="' + '\\"' * 500_000 + '"} 1\n'):
        with pytest.raises(ValueError, match=f"at most {LINES_MAX} of {LINE_LENGTH_MAX} are read"):
            list(read_samples(text, "b".__eq__))
