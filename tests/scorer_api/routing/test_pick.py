"""The message of a pick without a pod."""

from scorer_api.routing.pick import NoPodError


def test_it_counts_the_exclusions() -> None:
    error = NoPodError({"excluded": 2, "expired": 1})
    assert (str(error), error.reasons) == ("no pod can be picked: 2 excluded, 1 expired", {"excluded": 2, "expired": 1})


def test_it_says_where_none_of_the_requested_pods_exists() -> None:
    assert str(NoPodError({})) == "no pod can be picked: there is none of those asked for"
