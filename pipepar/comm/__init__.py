"""From a rank to its neighbours; knows no model."""
