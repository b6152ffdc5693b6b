"""The progress engine, in C++."""
