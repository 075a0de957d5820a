"""HTTP as every role speaks it: serving an app, bodies in and out, problems, and the routes that all roles have."""
