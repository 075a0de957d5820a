"""What runs the ingest side as a process: command line, configuration file, logs."""
