"""The compiled core beside the Python that it stands for. Without the compiled core these tests are skipped."""
