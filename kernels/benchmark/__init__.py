"""How fast, how small and how exact the operations are, beside their peers: ``python -m kernels.benchmark``.

``clock`` measures, ``contestants`` are ours and the peers on equal work, ``accuracy`` is the oracle on the card
and the table of k3 errors, ``report`` holds the bars and writes CSV and plot.
"""
