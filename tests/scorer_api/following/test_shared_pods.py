"""What a scorer says of pods that it does not follow itself."""

from tests.engine import Engine, stored
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.waiting import wait_until

BASE = "http://127.0.0.1:9/base"


def test_pods_and_picks_agree_about_the_api_of_a_pod_that_is_registered_without_one() -> None:
    """The indexer that follows the pod was told by a flag; the registration says nothing of it."""
    with Engine() as engine, RedisServer() as redis, ingest(redis.url, engine.spec("a", http=BASE)) as indexer, api(redis.url) as scorer:
        for command in (indexer, scorer):
            command.wait_url()
        engine.publish(stored([1], [1, 2, 3, 4]))
        wait_until(lambda: scorer.http.get(f"{scorer.url}/v1/pods").json()["pods"] != [])
        scorer.wait_for(pod="a", sequence=0, trust="live")
        endpoints = dict(part.split("=", 1) for part in engine.spec("a").split(","))
        body = {"model": "m", "events": endpoints["events"], "replay": endpoints["replay"]}
        assert scorer.http.put(f"{scorer.url}/v1/pods/a", json=body).status_code in (200, 201)

        def said() -> tuple[str, str]:
            (pod,) = scorer.http.get(f"{scorer.url}/v1/pods").json()["pods"]
            routed = scorer.http.post(f"{scorer.url}/v1/route", json={"model": "m", "token_ids": [1]}).json()
            return pod["http"], routed["http"]["a"]

        wait_until(lambda: said() == (BASE, BASE))
