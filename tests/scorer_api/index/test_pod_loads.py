"""The newest load of each pod."""

from indexer.engines.load import Load
from scorer_api.index.pod_loads import PodLoads


def test_the_newest_measurement_is_kept() -> None:
    loads = PodLoads()
    assert loads.get("m", "a") is None
    loads.note("m", "a", Load(1, 0), 10.0)
    loads.note("m", "a", Load(2, 0), 9.0)
    assert loads.get("m", "a") == (Load(1, 0), 10.0), "an older one changes nothing"
    loads.note("m", "a", Load(3, 0), 10.0)
    assert loads.get("m", "a") == (Load(3, 0), 10.0)


def test_loads_are_by_model_and_pod_until_they_are_forgotten() -> None:
    loads = PodLoads()
    loads.note("m", "a", Load(1, 0), 1.0)
    loads.note("n", "a", Load(2, 0), 1.0)
    loads.forget("m", "a")
    loads.forget("m", "a")
    assert (loads.get("m", "a"), loads.get("n", "a")) == (None, (Load(2, 0), 1.0))
