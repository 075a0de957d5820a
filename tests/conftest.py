"""Property tests have no deadline of their own, and in CI they always try the same examples. A line for each request would drown a log."""

import logging
import os

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
logging.getLogger("httpx").setLevel(logging.WARNING)
