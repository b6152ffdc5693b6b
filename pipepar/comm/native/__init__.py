"""C++ extension modules: the progress engine and the pulse."""
