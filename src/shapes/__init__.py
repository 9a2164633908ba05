"""The drawn world of the embedded default: coloured shapes on a grid, their prompts, plans and judge."""
