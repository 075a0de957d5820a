"""A registered pod whose engine is gone does not stay for ever."""

from indexer.compiled import ACTIVE
from tests.engine import Engine, stored
from tests.running import Running
from tests.waiting import wait_until


def test_a_registered_pod_that_is_dead_is_forgotten_and_the_service_is_ready_again() -> None:
    with Engine() as engine, Engine() as named, Running(named.spec("named"), registration_expiry_s="0.4") as service:
        engine.publish(stored([1], [1, 2, 3, 4]))
        spec = {"model": "m", "events": f"tcp://127.0.0.1:{engine.events_port}", "replay": f"tcp://127.0.0.1:{engine.replay_port}"}
        assert service.http.put(f"{service.url}/v1/pods/registered", json=spec).status_code == 201
        service.wait_for(pod="registered", trust="live", sequence=0)
        service.wait_for(pod="named", trust="live")
        named.kill()
        service.wait_for(pod="named", connected=False)
        engine.kill()
        wait_until(lambda: [pod["pod"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]] == ["named"])
        named.start()
        wait_until(lambda: service.http.get(f"{service.url}/readyz").json() == {"status": "ready", "reasons": [], "core": ACTIVE})
