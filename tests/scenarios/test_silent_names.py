"""Engines whose names nobody answers for, beside others."""

import time

from tests.engine import BLOCK_SIZE, Engine, stored
from tests.forked import ForkedProcess, fork_module
from tests.running import Command
from tests.settings import QUICK, words_of

NAMES = 40
END_S = 20.0


class WithSilentNames(Command):
    """The command where the server for names that end with `.silent` never answers."""

    def _start(self) -> ForkedProcess:
        return fork_module("tests.silent_names", self.words, self._env)


def test_names_that_nobody_answers_for_hold_up_neither_others_nor_the_end() -> None:
    names = [f"engine-{number}.silent" for number in range(NAMES)]
    silent = [f"pod={name},model=m,events=tcp://{name}:5557,replay=tcp://{name}:5558" for name in names]
    with Engine() as engine:
        by_name = engine.spec("named").replace("127.0.0.1", "localhost")
        words = [word for spec in (*silent, by_name) for word in ("--engine", spec)]
        with WithSilentNames("serve", *words_of({**QUICK, "port": "0"}), *words) as service:
            service.wait_url()
            service.wait_for(pod="named", sequence=engine.publish(stored([1, 2], range(2 * BLOCK_SIZE))), trust="live")
            assert service.matched(range(2 * BLOCK_SIZE + 1), pod="named") == 2 * BLOCK_SIZE
            began_s = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began_s < END_S
