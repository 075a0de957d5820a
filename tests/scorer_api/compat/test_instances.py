"""Names of pods and models as other indexers have them."""

import pytest

from scorer_api.compat.instances import instance_of, model_of, name_and_group


@pytest.mark.parametrize("pod", ["0", "7", str(2**64 - 1)])
def test_a_pod_that_is_named_by_a_number_is_that_instance(pod: str) -> None:
    assert instance_of(pod) == int(pod)


def test_any_other_pod_has_a_number_that_every_json_library_keeps() -> None:
    numbers = {pod: instance_of(pod) for pod in ("10.0.0.7:8000", "07", "-1", str(2**64), "²", "")}
    assert len(set(numbers.values())) == len(numbers)
    assert all(0 <= number < 2**53 for number in numbers.values())


@pytest.mark.parametrize(("name", "group", "model"), [("m", "default", "m"), ("org/m", "acme", "org/m@acme"), ("a@b", "acme", "a@b@acme")])
def test_a_model_in_a_group_is_another_model(name: str, group: str, model: str) -> None:
    assert model_of(name, group) == model
    assert name_and_group(model) == (name, group)


def test_half_a_group_is_none() -> None:
    assert name_and_group("m@") == ("m@", "default")
    assert name_and_group("@g") == ("@g", "default")
