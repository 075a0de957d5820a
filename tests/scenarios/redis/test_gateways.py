"""Scorers that follow Redis pick for gateways, too: what indexers know of pods, their roles included, is known to them."""

import json
from contextlib import ExitStack

from tests.engine import Engine, stored
from tests.ext_proc import DESTINATION
from tests.gateway import Gateway
from tests.ports import free_port
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.scorer_stub import TIMEOUT_S, messages, stub_of
from tests.waiting import wait_until

AT = {"decode-0": "10.0.0.1:80", "decode-1": "10.0.0.2:80", "prefill-0": "10.0.0.3:80"}
HELD = list(range(1, 65))


def test_a_scorer_that_follows_nothing_but_redis_picks_for_gateways() -> None:
    port = free_port()
    flags = {"gateway_listen": f"127.0.0.1:{port}", "gateway_notice_s": "0.001", "pick_prefill_tokens": "16", "load_interval_s": "0"}
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        engines = {pod: stack.enter_context(Engine()) for pod in AT}
        specs = [engine.spec(pod, http=f"http://{AT[pod]}", role=pod.partition("-")[0]) for pod, engine in engines.items()]
        stack.enter_context(ingest(redis.url, *specs, load_interval_s="0")).wait_url()
        scorer = stack.enter_context(api(redis.url, **flags)).wait_url()
        wait_until(lambda: len(scorer.http.get(f"{scorer.url}/v1/pods").json()["pods"]) == len(AT))
        scorer.wait_for(pod="decode-1", connected=True)
        engines["decode-1"].publish(stored(list(range(16)), HELD))
        wait_until(lambda: scorer.score([*HELD, 0])["pods"][0]["matched_tokens"] == len(HELD))
        gateway = stack.enter_context(Gateway(port))
        reply = gateway.pick(json.dumps({"model": "m", "prompt": [*HELD, *range(1000, 1100)]}).encode())
        assert (reply.set[DESTINATION], reply.set["x-prefiller-host-port"]) == (AT["decode-1"], AT["prefill-0"])
        reply = gateway.pick(json.dumps({"model": "m", "prompt": [*HELD, 1]}).encode())
        assert (reply.set[DESTINATION], reply.set.get("x-prefiller-host-port")) == (AT["decode-1"], None)
        stub = stub_of(gateway.channel)
        answer = stub.Score(messages.ScoreRequest(model="m", token_ids=[*HELD, 0]), timeout=TIMEOUT_S)
        assert (answer.best, answer.pods[0].matched_tokens, answer.view.source) == ("decode-1", len(HELD), "redis")
        pick = stub.Route(messages.RouteRequest(model="m", token_ids=[*HELD, 0]), timeout=TIMEOUT_S)
        assert pick.pod == "decode-1"
        assert stub.Done(messages.DoneRequest(id=pick.id), timeout=TIMEOUT_S).known
