"""A web page where a model plans and paints a prompt: ``python -m src.demo`` (docs/DEMO.md)."""
