"""The ways to a Redis: by its socket, by TLS, with a password, as a user with few rights."""

from collections.abc import Callable

import pytest

from tests.redis_server import User
from tests.running import Command
from tests.scenarios.redis.world import World, readiness, wait_owned
from tests.tls import CERTIFICATE, TlsFront
from tests.waiting import wait_until

MakeWorld = Callable[..., World]
# What an operator would give: the service's own keys, and none of the commands that are dangerous to others.
FEW_RIGHTS = "resetkeys ~kvi:* resetchannels -@all +@read +@write +@connection +@scripting +@transaction +time +info +cluster -@dangerous +info"


def works(world: World, url: str) -> None:
    fleet = world.fleet(streams=2)
    world.indexers(1, fleet, url=url)
    (scorer,) = world.scorers(1, url=url)
    wait_owned(scorer, 2, by=1)
    fleet.play(100)
    fleet.settle(scorer)


def test_a_unix_socket(world: World) -> None:
    works(world, world.redis.unix_url)


def test_tls(world: World) -> None:
    with TlsFront(world.redis.port) as front:
        works(world, f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={CERTIFICATE}")
        assert front.connections > 0


@pytest.mark.rule("R1")
def test_a_certificate_of_an_unknown_authority_is_refused(world: World) -> None:
    """The scorer is not ready, and says why."""
    with TlsFront(world.redis.port) as front:
        (scorer,) = world.scorers(1, url=f"rediss://127.0.0.1:{front.port}/0")
        wait_until(lambda: front.connections > 0 or "redis" in " ".join(readiness(scorer)[2]).lower())
        assert readiness(scorer)[0] == 503


def test_a_password(make_world: MakeWorld) -> None:
    world = make_world(requirepass="s/e:cr@t")
    works(world, world.redis.url)


@pytest.mark.rule("R2")
def test_a_user_who_may_do_only_what_is_needed(make_world: MakeWorld) -> None:
    """The keys of the namespace, and none of the commands that Redis itself calls dangerous."""
    world = make_world(users=[User("admin", "secret"), User("kvi", "p:w", FEW_RIGHTS)])
    works(world, world.redis.url_of(world.redis.users[1]))


@pytest.mark.rule("C14")
def test_a_wrong_password_is_said_and_not_shown(make_world: MakeWorld) -> None:
    """The log says that Redis refuses us; no log line has the password."""
    world = make_world(requirepass="right")
    (scorer,) = world.scorers(1, url=f"redis://:wr0ng@127.0.0.1:{world.redis.port}/0")
    wait_until(lambda: any("redis" in line.lower() for line in scorer.lines[1:]) and scorer.is_running)
    assert "wr0ng" not in "\n".join(scorer.lines)


def test_a_wrong_url_stops_the_start() -> None:
    for url in ("http://127.0.0.1:6379", "redis://127.0.0.1:port/0", "127.0.0.1:6379"):
        with Command("api", "--redis", url, "--port", "0") as scorer:
            assert scorer.process.wait(30) == 2
            wait_until(lambda scorer=scorer: scorer.lines)
        assert len(scorer.lines) == 1
        assert url.replace(":port/", ":***/") in scorer.lines[0], "where a port should be may be a password"
