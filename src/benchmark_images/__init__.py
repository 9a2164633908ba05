"""Images for public text-to-image benchmarks, in the layouts their own scorers read (docs/BENCHMARKS.md).

A file a benchmark says how the user's copy of its prompts is read and where its images go; `writer` paints them.
(How fast this project is, is `src.benchmark`.)
"""
