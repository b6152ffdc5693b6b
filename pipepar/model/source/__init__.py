"""The MODEL argument -> a module on meta, and the location of its weights."""
