"""Processes of the service can be stopped in every way."""

import signal

import httpx
import pytest

from tests.processes import serve


def test_a_frozen_process_answers_after_it_is_thawed() -> None:
    with serve(None) as service:
        service.wait_url()
        service.freeze()
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{service.url}/healthz", timeout=0.3)
        service.thaw()
        assert service.http.get(f"{service.url}/healthz").status_code == 200


def test_a_process_ends_by_kill_and_by_stop() -> None:
    with serve(None) as killed, serve(None) as stopped:
        for service in (killed, stopped):
            service.wait_url()
            assert service.is_running
        killed.kill()
        assert stopped.stop() == 0
        assert killed.process.returncode == -signal.SIGKILL
        assert not killed.is_running
        assert not stopped.is_running


def test_a_frozen_process_ends_with_its_test() -> None:
    with serve(None) as service:
        service.wait_url()
        service.freeze()
    assert service.process.returncode == 0
