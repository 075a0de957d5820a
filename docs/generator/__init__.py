"""Builds the parts of the documentation site that are generated from the code: settings, commands, routes, metrics, log events and findings."""
