"""What workers know of each other is in memory that forked processes share."""

import os

from indexer.workers.board import WorkerBoard, WorkerState


def test_a_new_board_shows_nobody_running() -> None:
    board = WorkerBoard(3)
    assert board.others(1) == {0: WorkerState.DOWN, 2: WorkerState.DOWN}
    assert [board.restarts(number) for number in range(3)] == [0, 0, 0]


def test_what_a_forked_process_writes_is_seen_here_and_leaves_other_records_alone() -> None:
    board = WorkerBoard(2)
    board.set_connections(0, 7)
    pid = os.fork()
    if not pid:
        board.set_state(1, WorkerState.READY)
        board.set_connections(1, 2**32 - 1)
        os._exit(0)
    os.waitpid(pid, 0)
    assert (board.state(1), board.connections(1)) == (WorkerState.READY, 2**32 - 1)
    board.count_restart(1)
    board.set_state(1, WorkerState.DOWN)
    assert (board.state(0), board.connections(0), board.restarts(0)) == (WorkerState.DOWN, 7, 0)
    assert (board.state(1), board.connections(1), board.restarts(1)) == (WorkerState.DOWN, 2**32 - 1, 1)
