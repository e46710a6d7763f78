"""Sources of weights and text: ``hub``, ``pypi``, ``path`` and ``synthetic``. Torch is imported where it is needed."""
