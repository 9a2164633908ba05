"""Images for public text-to-image benchmarks, in the layouts their own scorers read (docs/BENCHMARKS.md).

One file per benchmark reads the user's copy of its prompts and places its images; `writer` paints them.
(`src.benchmark` measures speed.)
"""
