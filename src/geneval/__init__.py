"""GenEval's scorer (arXiv 2310.11513) without mmdetection: its rules, Mask2Former and CLIP through transformers."""
