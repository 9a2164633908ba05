"""The benchmarks by name."""

from __future__ import annotations

from src.benchmark_images import dpg, geneval, t2i_compbench, tiif, wise
from src.benchmark_images.items import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK for module in (geneval, t2i_compbench, wise, dpg, tiif)
}
