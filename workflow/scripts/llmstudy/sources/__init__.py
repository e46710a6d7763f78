"""Sources of weights and text: ``hub``, ``pypi``, ``path`` and ``synthetic``; importing this does not import torch."""

from llmstudy.sources.corpora import fetch_corpus
from llmstudy.sources.models import fetch_weights
from llmstudy.sources.weights import Weights, open_weights

__all__ = ["Weights", "fetch_corpus", "fetch_weights", "open_weights"]
