"""From a model to stages; knows no rank."""
