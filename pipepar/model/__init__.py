"""From a model to stages, without ranks."""
