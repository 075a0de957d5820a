"""Many streams in one pool."""

from tests.running import Running


def test_of_many_streams_that_fail_the_first_are_named_and_the_others_counted() -> None:
    specs = [f"pod=p{number},model=m,events=tcp://127.0.0.1:9" for number in range(60)]
    with Running(*specs) as service:
        reasons = service.http.get(f"{service.url}/readyz").json()["reasons"]
        assert len(reasons) == 51
        assert reasons[0].startswith("pod p0 rank 0 is stale: cannot connect to tcp://127.0.0.1:9")
        assert reasons[-1] == "and 10 more"
        assert service.metric("kv_indexer_streams", trust="stale") == 60
