"""Runs a service as a process: command line, configuration file, logs."""
