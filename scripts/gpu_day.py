#!/usr/bin/env python3
"""What a GPU makes of this project, in one call of under 8 minutes: scripts/gpu_day.py --out FOLDER

It times torch (eager, compiled, CUDA graph; fp32, and fp16 by autocast) with random weights at the paper's size, and a
bundle in onnxruntime with every provider that works here. TensorRT's engines are built first, and every provider is
compared with the CPU (export/gates.py). Whatever fails leaves its reason in the table. FOLDER gets gpu_day.json and
gpu_day.md. With --cpu it rehearses all of it with a tiny model, without a GPU. Needs torch 2.4 or newer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from mega_model import generate
from mega_model.mega import PRESETS, Mega, MegaConfig

TINY = MegaConfig(
    codes=32,
    width=32,
    encoder_blocks=1,
    decoder_blocks=1,
    heads=2,
    backbone="resnet18",
    backbone_width=4,
    image_size=64,
)
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy")
STEPS = 5
REPEATS = 20
"""At most; a row ends after 5 seconds, or 0.1 in a rehearsal."""
Row = dict[str, Any]


class Day:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = "cpu" if options.cpu else "cuda"
        self.begin = time.perf_counter()
        self.rows: list[Row] = []

    def late(self) -> bool:
        return time.perf_counter() - self.begin > 60 * self.options.minutes

    def attempt(self, what: str, run: Callable[[], Row], **sizes: int) -> None:
        """A row of the table, with the result or the reason why there is none."""
        row: Row = {"what": what, **sizes}
        try:
            row |= {"problem": "left out: no time was left"} if self.late() else run()
        except Exception as error:  # the day goes on
            first = (str(error).strip().splitlines() or [""])[0]
            row |= {"problem": f"{type(error).__name__}: {first}"[:300]}
            print(traceback.format_exc(), file=sys.stderr)
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def seconds(self, run: Callable[[], Any]) -> Row:
        """Median and 95th percentile of the time of `run`, and the peak of the GPU's memory."""
        wait: Callable[[], None] = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        run()
        wait()
        end = time.perf_counter() + (0.1 if self.options.cpu else 5)
        while len(times) < REPEATS and (not times or time.perf_counter() < end):
            start = time.perf_counter()
            run()
            wait()
            times.append(1e3 * (time.perf_counter() - start))
        row: Row = {"p50_ms": median(times), "p95_ms": sorted(times)[int(0.95 * (len(times) - 1))]}
        if self.device == "cuda":
            row["peak_MB"] = torch.cuda.max_memory_allocated() / 1e6
        return row

    # ---------------------------------------------------------------------------------------------------------- torch

    def peak(self) -> Row:
        """Of a large matrix product in fp32."""
        size = 512 if self.options.cpu else 8192
        a = torch.randn(size, size, device=self.device)
        row = self.seconds(lambda: a @ a)
        return row | {"TFLOP/s": 2 * size**3 / row["p50_ms"] / 1e9}

    def torch_rows(self) -> None:
        config = TINY if self.options.cpu else PRESETS[self.options.preset]
        torch.manual_seed(0)
        model = Mega(config).eval().to(self.device)
        for people in self.options.people:
            images = torch.randn(people, 3, config.image_size, config.image_size, device=self.device)
            for samples in self.options.samples:
                shape = (people, samples, STEPS, config.tokens, 2)
                uniforms = generate.uniforms(shape, seed=0).to(self.device) if samples else None
                self.torch_row(model, images, uniforms, people=people, samples=samples)

    def torch_row(self, model: Mega, images: torch.Tensor, uniforms: torch.Tensor | None, **sizes: int) -> None:
        def tokens() -> torch.Tensor:
            seen = model.encode_image(model.backbone(images)).image
            logits = generate.first_logits(model, seen)
            return logits.argmax(-1) if uniforms is None else generate.sample(model, seen, logits, uniforms, 1.0)

        def measured(run: Callable[[], torch.Tensor]) -> Row:
            row = self.seconds(run)
            return row | {"tokens that differ": float((run() != reference).float().mean())}

        def graph() -> Row:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what is set up lazily must not be captured
                for _ in range(3):
                    tokens()
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                out = tokens()

            def replay() -> torch.Tensor:
                captured.replay()
                return out

            return measured(replay)

        reference = tokens()
        ways: dict[str, Callable[[], Row]] = {"eager": lambda: measured(tokens)}
        if self.device == "cuda":
            if len(images) == self.options.people[0]:  # each size compiles for a minute
                ways["compiled"] = lambda: measured(torch.compile(tokens))
            ways["CUDA graph"] = graph
        kinds = {"fp32": torch.float32} | ({} if self.options.cpu else {"fp16": torch.float16})
        for precision, kind in kinds.items():
            for name, way in ways.items():
                with torch.autocast(self.device, kind, enabled=kind != torch.float32):
                    self.attempt(f"torch {name} {precision}", way, **sizes)

    # ---------------------------------------------------------------------------------------------------- onnxruntime

    def bundle_rows(self) -> None:
        from export import gates  # needs what the runtime needs
        from mega_ros.bundle import Bundle
        from mega_ros.engines import OnnxEngine

        bundle = Bundle.load(self.options.bundle)
        cpu = gates.Chain(bundle, lambda graph: OnnxEngine(bundle, graph, "cpu"))
        kinds = [("cpu", "fp32")] + (
            [] if self.options.cpu else [("cuda", "fp32"), ("tensorrt", "fp32"), ("tensorrt", "fp16")]
        )
        for provider, precision in kinds:
            chains: list[Any] = []

            def start(provider: Any = provider, precision: Any = precision, chains: list[Any] = chains) -> Row:
                begin = time.perf_counter()
                chains.append(gates.Chain(bundle, lambda graph: OnnxEngine(bundle, graph, provider, precision)))
                return {"start_s": time.perf_counter() - begin}

            what = f"onnxruntime {provider} {precision}"
            self.attempt(f"{what}: start, engines included", start)
            for people in self.options.people if chains else []:
                for samples in self.options.samples:
                    crops = gates.noise_crops(bundle.crop.size, people)
                    given = gates.inputs(bundle, crops, max(samples, 1))

                    def measured(chain: Any = chains[0], given: Any = given, precision: Any = precision) -> Row:
                        found = gates.errors(cpu(given), chain(given), chain(given))
                        return self.seconds(lambda: chain(given)) | found | {"missed": gates.missed(found, precision)}

                    self.attempt(what, measured, people=people, samples=max(samples, 1))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def markdown(report: dict[str, Any]) -> str:
    rows = report["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")

    lines = [
        f"# {report['card']}, {report['date']}",
        "",
        ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
    ]
    lines += [f"| {' | '.join(cell(row.get(key, '')) for key in columns)} |" for row in rows]
    return "\n".join([*lines, "", f"{report['seconds']:.0f} s in all.", ""])


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the results")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU with a tiny model")
    parser.add_argument("--preset", choices=[*PRESETS], default="hrnet", help="of torch's model")
    parser.add_argument("--bundle", default="default", help="of onnxruntime's rows")
    parser.add_argument("--people", type=int, nargs="+", default=[1, 4], metavar="P")
    parser.add_argument("--samples", type=int, nargs="+", default=[0, 10, 25], metavar="Q")
    parser.add_argument("--minutes", type=float, default=6, help="no row begins later")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        print("gpu_day: torch finds no GPU here; --cpu rehearses without one", file=sys.stderr)
        return 1
    day = Day(options)
    with torch.device(day.device):
        day.attempt("matrix product fp32", day.peak)
        for part in (day.bundle_rows, day.torch_rows):
            try:
                part()
            except Exception as error:
                day.rows.append({"what": part.__name__, "problem": f"{type(error).__name__}: {error}"[:300]})
                print(traceback.format_exc(), file=sys.stderr)
    report = {
        "card": "CPU, a rehearsal" if options.cpu else torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "seconds": time.perf_counter() - day.begin,
        "rows": day.rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_day.json").write_text(json.dumps(report, indent=1))
    (options.out / "gpu_day.md").write_text(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
