"""The Triton implementation of the operations; importing a module of it imports Triton.

``device`` holds the arithmetic of one row, ``rows`` and ``one_pass`` the kernels and what launches them,
``statistics`` and ``heads`` the operations with their gradients; ``attention`` and ``decoding`` a decode step's.
"""
