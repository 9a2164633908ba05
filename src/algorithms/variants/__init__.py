"""One algorithm variant a file; :func:`src.algorithms.load` finds them by the file's name."""
