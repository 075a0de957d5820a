"""Names of spans are those of routes, whatever clients ask for."""

import pytest

from indexer.http.traced import route_of


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/score", "/v1/score"),
        ("/v1/score/batch", "/v1/score/batch"),
        ("/v1/route/done", "/v1/route/done"),
        ("/v1/pick/v1/chat/completions", "/v1/pick"),
        ("/v1/pods/10.0.0.7:8000", "/v1/pods"),
        ("/v1/scores", "/v1"),
        ("/v1/anything/at/all", "/v1"),
        ("/healthz", None),
        ("/metrics", None),
        ("/ui/main.js", None),
        ("/v10/score", None),
        ("", None),
    ],
)
def test_a_path_has_the_name_of_its_route(path: str, route: str | None) -> None:
    assert route_of(path) == route
