"""A page on which a model plans and paints what is typed: ``python -m src.demo`` (docs/DEMO.md)."""
