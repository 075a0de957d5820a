"""`make test-browser` where there is no Chromium."""

import os
import subprocess
import sys

from tests.running import ROOT


def test_without_chromium_it_fails_and_says_what_to_install() -> None:
    words = [sys.executable, "-m", "pytest", "-m", "browser", "-p", "no:cacheprovider", "tests/browser/test_prefix.py"]
    environment = {**os.environ, "TEST_CHROMIUM": "/nonexistent/chromium"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "apt-get install chromium chromium-driver" in said
    assert "skipped" not in said
