"""An upgrade to a version whose keys in Redis have another layout, and the way back, as docs/operations.md tells it."""

from collections.abc import Callable

import pytest

from indexer.store.keyspace import LAYOUT
from tests.next_layout import NEXT
from tests.scenarios.redis.world import NAMESPACE, World, wait_ready
from tests.waiting import wait_until

POD_EXPIRY_S = 3.0
OLD, NEW = f"{NAMESPACE}:{LAYOUT}:", f"{NAMESPACE}:{NEXT}:"


def test_two_layouts_side_by_side_and_each_alone(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Old and new replicas share a Redis and no key of it, both answer right, the old one's keys go after it, and the way back is open."""
    world = make_world(pod_expiry_s=POD_EXPIRY_S)
    fleet = world.fleet(streams=2)
    old_indexers, old_scorers = world.indexers(1, fleet), world.scorers(1)
    wait_ready(*old_indexers, *old_scorers)
    fleet.resume()
    with monkeypatch.context() as patch:
        patch.setattr("tests.running._entry", lambda: ["tests.next_layout"])
        new_indexers, new_scorers = world.indexers(1, fleet), world.scorers(1)
    wait_ready(*new_indexers, *new_scorers)
    fleet.settle(*old_scorers, *new_scorers)
    names = {name.decode().removeprefix(f"{NAMESPACE}:").partition(":")[0] for name in world.redis.keys(f"{NAMESPACE}:")}
    assert names == {str(LAYOUT), str(NEXT)}

    for process in (*old_scorers, *old_indexers):
        assert process.stop() == 0
    fleet.resume()
    world.redis.wait_empty(POD_EXPIRY_S * 4, prefix=OLD)
    fleet.settle(*new_scorers)

    old_indexers, old_scorers = world.indexers(1, fleet), world.scorers(1)
    wait_ready(*old_indexers, *old_scorers)
    fleet.settle(*old_scorers, *new_scorers)
    for process in (*new_scorers, *new_indexers):
        assert process.stop() == 0
    wait_until(lambda: world.redis.keys(NEW) == [], POD_EXPIRY_S * 4)
    fleet.settle(*old_scorers)
