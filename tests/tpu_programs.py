"""Runs every stage with a TPU compiler, or its lowering alone, in the place of devices.

test_tpu_lowering.py starts this file in a process of its own, with libtpu's environment:

    python -m tests.tpu_programs FOLDER TOPOLOGY KIND [lower]     (KIND: one of KINDS)

`jax.jit` is replaced before any package of ours is imported: a program is found because a stage
calls it, never because it is listed here. When it is called it is traced and compiled for the
chips of the topology, with the arguments, the shardings and the mesh (or the absence of one) of
the stage's own call; once for each set of static arguments, other shapes are traced alone. It is
not run, there being no chips: every output is filled with ones, which is all that the stages need
to come to their end.

The last line of standard output is a JSON list with one object a program: the stage, the module,
line of its `jax.jit`, the number of Pallas kernels in the program, the platform of
its devices, the seconds to lower and compile, and the error ("" if none).
"""

import contextlib
import dataclasses
import inspect
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "train", "alignment", "eval", "launch")
LENGTH = 256  # tokens a row; splash attention takes multiples of 128
# Verbs in order, and the keys that change from there on: DPO, PPO and GRPO run the model on all
# tokens of a row but the last.
VERBS = (
    ("curate", {}),
    ("tokenizer", {}),
    ("pretrain", {}),
    ("sft", {}),
    ("reward", {}),
    ("reward", {"reward.seq_len": LENGTH + 1}),
    ("dpo", {}),
    ("ppo", {}),
    ("grpo", {}),
    ("eval", {}),
)
# Kinds of runs: sizes of the mesh's axes, and keys that bring other programs about.
KINDS = {
    "dense": ({"fsdp": 4}, {}),
    "heads": ({"fsdp": 2, "tensor": 2}, {}),
    "experts": (
        {"expert": 4},
        {
            "model.moe.num_experts": 8,
            "model.moe.top_k": 2,
            "model.moe.d_ff": 128,
            "model.moe.aux_loss": 0.01,
            "layout.remat": "full",
            **{f"{stage}.loop.num_microbatches": 2 for stage in ("pretrain", "reward", "dpo")},
        },
    ),
    "ring": ({"fsdp": 2, "context": 2}, {"layout.context": "ring", "model.sinks": True}),
    "pipeline": (
        {"fsdp": 2, "stage": 2},
        {"model.num_layers": 2, "layout.stage_microbatches": 2, "layout.remat": "dots"},
    ),
    "gemma": (
        {"fsdp": 2, "tensor": 2},
        {
            "model.num_layers": 2,
            "model.layers": "('sliding', 'full')",
            "model.window": 64,
            "model.attention_softcap": 50.0,
            "model.logit_softcap": 30.0,
            "model.norm_place": "sandwich",
            "model.qk_norm": "head",
            "model.scale_embedding": True,
            "layout.scan_layers": False,
            "model.quantized": "int8",
        },
    ),
    "latent": (
        {"fsdp": 4},
        {
            "model.mla.kv_rank": 64,
            "model.mla.rope_dim": 64,
            "model.mla.value_dim": 128,
            "model.num_kv_heads": 4,
            "model.qk_norm": "none",
        },
    ),
}
KERNEL = "tpu_custom_call"  # a Pallas kernel, in the text of a program
plain_jit = jax.jit


class Compiler:
    """What takes the place of `jax.jit`, and the programs that it has compiled."""

    def __init__(self, topology: str, compiles: bool):
        self._compiles = compiles
        self.chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        self.rows: list[dict] = []
        self._stage, self._again, self._outputs, self._compiled = "", False, {}, set()

    def jit(self, function: Callable, **options: Any) -> Any:
        caller = inspect.currentframe().f_back
        module = caller.f_globals["__name__"]
        if module.split(".")[0] not in PACKAGES:
            return plain_jit(function, **options)
        return Program(self, function, options, {"module": module, "line": caller.f_lineno})

    def start(self, stage: str) -> None:
        """Notes the stage; nothing is compiled for one that comes again."""
        self._again = any(row["stage"] == stage for row in self.rows)
        self._stage = stage

    def call(self, program: "Program", args: tuple, kwargs: dict) -> Any:
        """Ones in place of a program's outputs."""
        mesh = jax.sharding.get_abstract_mesh()
        axes = None if mesh.empty else tuple(mesh.shape.items())
        args, kwargs = jax.tree.map(self._describe, (args, kwargs))
        leaves, structure = jax.tree.flatten((args, kwargs))
        static = tuple(x for x in leaves if not isinstance(x, jax.ShapeDtypeStruct))
        alike = (program.function, structure, static, axes)
        key = (*alike, tuple(leaves))
        if key not in self._outputs:
            options = jax.tree.map(self._move, program.options)
            with jax.set_mesh(self._mesh(axes)) if axes else contextlib.nullcontext():
                traced = plain_jit(program.function, **options).trace(*args, **kwargs)
                if not self._again and alike not in self._compiled:
                    self._compiled.add(alike)
                    self.rows.append(
                        {"stage": self._stage, **program.place, **try_out(traced, self._compiles)}
                    )
            self._outputs[key] = ones(traced.out_info, program.options.get("out_shardings"))
        return self._outputs[key]()

    def _describe(self, x: Any) -> Any:
        """An array's shape, on the chips if it has a named sharding; anything else as it is."""
        if not isinstance(x, jax.Array | np.ndarray | np.generic):
            return x
        place = getattr(x, "sharding", None)
        named = self._move(place) if isinstance(place, NamedSharding) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=named)

    def _move(self, x: Any) -> Any:
        """The same named sharding on the chips."""
        if not isinstance(x, NamedSharding):
            return x
        return NamedSharding(self._mesh(tuple(x.mesh.shape.items())), x.spec)

    def _mesh(self, axes: tuple) -> Mesh:
        """The chips laid out as the stages lay out their devices."""
        from model import sharding

        count = math.prod(size for _, size in axes)
        return sharding.make_mesh(sharding.MeshConfig(**dict(axes)), self.chips[:count])


def try_out(traced: Any, compiles: bool) -> dict:
    """Lowers a traced program for its chips; and compiles it, if wanted."""
    found = {"kernels": 0, "platform": "", "error": ""}
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        lowered = traced.lower()
        found["kernels"] = lowered.as_text().count(KERNEL)
        (found["platform"],) = lowered._lowering._platforms
        if compiles:
            lowered.compile()
    except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"[:1000]
    found["secs"] = round(time.perf_counter() - start, 2)
    return {**found, "cpu_secs": round(time.process_time() - cpu_start, 2)}


def ones(shapes: Any, shardings: Any) -> Callable[[], Any]:
    """What makes arrays of ones on the simulated devices."""
    return plain_jit(
        lambda: jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes), out_shardings=shardings
    )


@dataclasses.dataclass(eq=False)
class Program:
    """A jitted function of ours."""

    compiler: Compiler
    function: Callable
    options: dict
    place: dict

    def __call__(self, *args, **kwargs):
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs))):
            return plain_jit(self.function, **self.options)(*args, **kwargs)
        return self.compiler.call(self, args, kwargs)


def settings(folder: Path, axes: dict[str, int], more: dict[str, Any]) -> dict[str, Any]:
    """The pulse of test_launch_stages, with rows that splash attention takes, on the mesh."""
    from launch.stages.stage import STAGES
    from tests.launch.test_stages import MIX, SMALL, benchmarks, sources

    changes = {
        "stages": tuple(STAGES),
        "mesh.data": 1,
        "mesh.fsdp": 1,
        "mesh.tensor": 1,
        "model.dtype": "bfloat16",
        "model.d_model": 64,
        "model.head_dim": 128,
        "pretrain.seq_len": LENGTH,
        "sft.seq_len": LENGTH,
        "reward.seq_len": LENGTH,
        "reward.pairs.corrupt_rate": 1.0,  # the model's own answers are all alike: ones
        "ppo.rollout.max_prompt_tokens": LENGTH + 1 - SMALL["ppo.rollout.max_new_tokens"],
        "ppo.rollout.num_epochs": 1,
        "grpo.rollout.max_prompt_tokens": LENGTH + 1 - SMALL["ppo.rollout.max_new_tokens"],
        "grpo.rollout.max_new_tokens": SMALL["ppo.rollout.max_new_tokens"],
    }
    mesh = {f"mesh.{axis}": size for axis, size in axes.items()}
    return (
        SMALL | MIX | sources(folder / "text") | benchmarks(folder / "eval") | changes | mesh | more
    )


def main(folder: str, topology: str, kind: str, mode: str = "compile") -> None:
    """See the top of the file."""
    axes, more = KINDS[kind]
    jax.config.update("jax_num_cpu_devices", math.prod(axes.values()))
    # Quicker to compile, and what is compiled is not run.
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    jax.config.update("jax_memory_fitting_effort", -1.0)
    compiler = Compiler(topology, mode == "compile")
    jax.jit = compiler.jit
    # Where no mesh says what the devices are: as on a TPU machine.
    jax.default_backend = lambda: "tpu"
    from launch.cli import run_command
    from model import flop

    # A peak that is measured would be compiled for chips and never run.
    flop.PEAK_FLOPS[jax.devices()[0].device_kind] = (1e15, 1e15)
    chosen = settings(Path(folder), axes, more)
    for verb, changes in VERBS:
        compiler.start(verb)
        chosen |= changes
        overrides = [f"--config.{key}={value}" for key, value in chosen.items()]
        config = [f"--config={ROOT}/configs/quickstart.py", f"--run={folder}/run", "--fresh"]
        workers = ["--workers=1"] if verb in ("curate", "tokenizer") else []
        with contextlib.redirect_stdout(sys.stderr):
            code = run_command([verb, *config, *workers, *overrides])
        if code:
            sys.exit(f"{verb} ended with {code}")
    print(json.dumps(compiler.rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
