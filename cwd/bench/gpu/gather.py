"""E2: ways to gather pages into the window, asked for one by one and captured.

Each way is timed ten gathers at once, of other pages each, so that a cache holds nothing of what is read; and captured
also alone, which adds what it takes to launch a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cwd.bench.gpu.rig import Rig
from cwd.bench.gpu.timing import GB, Deadline, device_ns, median, spread_us
from cwd.bench.gpu.workbench import Workbench
from cwd.worker.backends.gpu import Gpu, torch
from cwd.worker.backends.gpu_pool import WORD_BYTES

ROUND = 10
REPEATS = 60
INDEX_SELECT, COPIES = "index_select", "page copies"

#: one block of threads walks along one page, 16 bytes and four of them in flight for each thread
SOURCE = """
extern "C" __global__ void gather_pages(const uint4* __restrict__ words, const long long* __restrict__ numbers,
                                        uint4* __restrict__ out, int page_words) {
    const uint4* from = words + (unsigned long long)numbers[blockIdx.y] * page_words;
    uint4* to = out + (unsigned long long)blockIdx.y * page_words;
    int step = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * step < page_words; i += 4 * step) {
        uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
        to[i] = a; to[i + step] = b; to[i + 2 * step] = c; to[i + 3 * step] = d;
    }
    for (; i < page_words; i += step) to[i] = from[i];
}
"""
_VECTOR_BYTES, _BLOCK, _GRID = 16, 256, 256

#: (words i64[pages, words], numbers i64[k], out i64[k, words])
Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """For each way and number of pages: right or not, us, TB/s read and written; and the best."""
    rig = bench.rig
    sizes, gpu = rig.sizes, rig.make_gpu()
    page_words = sizes.page_bytes // WORD_BYTES
    found = out["ways"] = {}
    with gpu.thread(urgent=True):
        words = gpu.memory(sizes.gather_pool * sizes.page_bytes).view(torch.int64).view(sizes.gather_pool, page_words)
        words.random_()
        window = gpu.memory(max(sizes.gather_pages) * sizes.page_bytes).view(torch.int64).view(-1, page_words)
        ways = _ways(rig, found)
        # what a ResNet-50 takes comes first, in case time runs out
        for pages in sorted(sizes.gather_pages, key=lambda count: count != 7):
            for name, way in ways.items():
                if bench.cut(until) and pages != 7:
                    out["cut"] = "no time for every number of pages"
                    break
                try:
                    found.setdefault(name, {})[str(pages)] = _measured(gpu, name, way, words, window[:pages], sizes.moment_s)
                except (RuntimeError, TypeError, ValueError, OSError) as error:
                    found.setdefault(name, {})[str(pages)] = {"refused": f"{type(error).__name__}: {error}"[:300]}
    _conclude(sizes.page_bytes, out)


def _ways(rig: Rig, found: dict[str, Any]) -> dict[str, Way]:
    def index_select(words: torch.Tensor, numbers: torch.Tensor, out: torch.Tensor) -> None:
        torch.index_select(words, 0, numbers, out=out)

    def gather(words: torch.Tensor, numbers: torch.Tensor, out: torch.Tensor) -> None:
        torch.gather(words, 0, numbers.view(-1, 1).expand(len(numbers), words.shape[1]), out=out)

    def index(words: torch.Tensor, numbers: torch.Tensor, out: torch.Tensor) -> None:
        torch.ops.aten.index.Tensor_out(words, [numbers], out=out)

    ways: dict[str, Way] = {INDEX_SELECT: index_select, "gather": gather, "x[idx]": index}
    try:
        kernel = rig.compiled(SOURCE, "gather_pages")

        def compiled(words: torch.Tensor, numbers: torch.Tensor, out: torch.Tensor) -> None:
            kernel(grid=(_GRID, len(numbers), 1), block=(_BLOCK, 1, 1),
                   args=[words, numbers, out, words.shape[1] * WORD_BYTES // _VECTOR_BYTES])

        ways["nvrtc uint4"] = compiled
    except Exception as error:  # a compiler that is missing is one way less
        found["nvrtc uint4"] = {"refused": f"{type(error).__name__}: {error}"[:300]}
    # the numbers of the pages are burnt into a capture: to compare with, and for what is not captured
    ways[COPIES] = lambda words, numbers, out: None
    return ways


def _measured(gpu: Gpu, name: str, way: Way, words: torch.Tensor, out: torch.Tensor, moment_s: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(len(out))
    chosen = [torch.randperm(len(words), generator=generator)[:len(out)] for _ in range(ROUND)]
    on_device = [numbers.to(words.device) for numbers in chosen]
    if name == COPIES:
        lists = [numbers.tolist() for numbers in chosen]

        def once(k: int) -> None:
            for place, page in enumerate(lists[k]):
                out[place].copy_(words[page])
    else:
        def once(k: int) -> None:
            way(words, on_device[k], out)

    def everything() -> None:
        for k in range(ROUND):
            once(k)

    out.zero_()
    once(0)
    right = torch.equal(out, words[on_device[0]])
    eager = device_ns(gpu, everything, REPEATS, Deadline(moment_s))
    graph, alone = gpu.capture(everything), gpu.capture(lambda: once(0))
    out.zero_()
    graph.replay()
    right = right and torch.equal(out, words[on_device[-1]])
    captured = device_ns(gpu, graph.replay, REPEATS, Deadline(moment_s))
    per_ns = median(captured) / ROUND
    return {"right": right, "eager_us": median(eager) / ROUND / 1e3, "captured_us": per_ns / 1e3,
            "terabytes_per_s": 2 * out.numel() * WORD_BYTES / GB / 1e3 / max(per_ns / 1e9, 1e-12),
            "alone": spread_us(device_ns(gpu, alone.replay, 200, Deadline(moment_s)))}


def _conclude(page_bytes: int, out: dict[str, Any]) -> None:
    """The fastest right way that a table can steer; what the worker's own way takes."""
    seven = {name: found["7"] for name, found in out["ways"].items() if found.get("7", {}).get("right")}
    steered = {name: row for name, row in seven.items() if name != COPIES}
    out["wrong"] = [name for name, found in out["ways"].items() for row in found.values()
                    if isinstance(row, dict) and row.get("right") is False]
    if steered:
        out["best"] = best = min(steered, key=lambda name: steered[name]["captured_us"])
        out["best_terabytes_per_s"] = steered[best]["terabytes_per_s"]
        out["us_per_page"] = {name: row["captured_us"] / 7 for name, row in seven.items()}
        out["page_bytes"] = page_bytes
