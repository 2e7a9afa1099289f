"""What a run asks: frozen dataclasses, every value checked. `read_grid` builds them.

A grid names models, methods (presets with parameter overrides), benchmarks, decode modes, seeds,
parameter sweeps and how the methods are grouped in the tables. Benchmarks are named one by one, or
found in a data folder by their layout. Strings `world:NAME` stand for files of the embedded
micro-world, which is drawn anew for each run. docs/ablate.md explains each key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

from cdkit.errors import CdkitError, check_temperature
from cdkit.evals.ablation.grid_checks import (
    LARGEST_SEED,
    MOST_THREADS,
    WHY_THREADS,
    check_integer,
    check_names,
    check_share,
    check_some,
    check_text,
    check_twice,
)
from cdkit.evals.ablation.published import Published
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.protocols.read import read_protocol
from cdkit.evals.runner.chosen_model import AUTO, ChosenModel, Dtype
from cdkit.evals.runner.modes import DECODE, GREEDY, PLAIN, SAMPLE, Decode

WORLD_PREFIX = "world:"

Options = Mapping[str, Any]  # keyword arguments of classes that check them themselves


@dataclass(frozen=True)
class WorldSpec:
    """The micro-world that a grid draws: `images` photographs from `seed`.

    `exam_images` more are drawn for each subset of MME. `confirmation` draws the confirmation
    world, for a model that was trained on it.
    """

    images: int = 150
    exam_images: int = 60
    seed: int = 2026
    confirmation: bool = False

    def __post_init__(self) -> None:
        check_integer("images of [world]", self.images, low=2)
        check_integer("exam_images of [world]", self.exam_images, low=2)
        check_integer("seed of [world]", self.seed, low=0)


@dataclass(frozen=True)
class MethodSpec:
    """A preset (or the path of a method file) and the parameters that depart from it."""

    preset: str
    overrides: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("preset of a method", self.preset)


@dataclass(frozen=True)
class BenchmarkSpec:
    """A registered benchmark, the fields it is built with and the folder of its images."""

    type: str
    image_folder: str
    options: Options = field(default_factory=dict)
    decode: tuple[str, ...] = ()
    """Empty: the grid's own modes."""
    show: tuple[str, ...] = ()
    """The metrics in the tables; empty: all."""

    def __post_init__(self) -> None:
        check_text("type of a benchmark", self.type)
        check_text("image_folder of a benchmark", self.image_folder)
        check_names("decode of a benchmark", self.decode, DECODE, "decode mode")


@dataclass(frozen=True)
class BenchSpec:
    """A registered benchmark that is found in the data folder, with all its parts."""

    options: Options = field(default_factory=dict)
    """Fields of the benchmark that depart from the layout's."""
    decode: tuple[str, ...] = ()
    """Empty: the grid's own modes."""
    show: tuple[str, ...] = ()
    """The metrics in the tables; empty: all."""
    only: tuple[str, ...] = ()
    """Parts, by shell patterns such as `pope_*_random`; empty: all."""


@dataclass(frozen=True)
class Sweep:
    """The values that a method's parameters take, one parameter at a time, and where."""

    values: Mapping[str, tuple[Any, ...]]
    benchmarks: tuple[str, ...]


@dataclass(frozen=True)
class Position:
    """Misses on a yes/no benchmark, counted by the place of the object in the image sequence."""

    benchmark: str
    placement: str
    methods: tuple[str, ...]
    bins: int = 4

    def __post_init__(self) -> None:
        check_some("methods of [position]", self.methods, "method")
        check_integer("bins of [position]", self.bins, low=2)


@dataclass(frozen=True)
class GallerySpec:
    """The report's gallery: so many questions of a benchmark, drawn by lot; 0 for none.

    `methods` are those whose attention is drawn over the pictures; empty: plain and every method
    that changes attention or positions.
    """

    samples: int = 4
    seed: int = 0
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_integer("samples of [gallery]", self.samples, low=0)
        check_integer("seed of [gallery]", self.seed, low=0)


@dataclass(frozen=True)
class CostSpec:
    """How often each method is timed, on so many questions of one benchmark; 0 rounds: not at all.

    The benchmark is the first that is answered greedily where none is named.
    """

    rounds: int = 0
    questions: int = 8
    benchmark: str = ""

    def __post_init__(self) -> None:
        check_integer("rounds of [cost]", self.rounds, low=0)
        check_integer("questions of [cost]", self.questions, low=1)


@dataclass(frozen=True)
class Grid:
    """All of one ablation."""

    summary: str = ""
    """A line about what it compares."""
    models: tuple[str, ...] = ("micro",)
    """"micro", checkpoints' folders, or names on the hub; one follows the other."""
    protocol: str | None = None
    """A packaged protocol's name, or the path of a TOML file."""
    protocol_changes: Options = field(default_factory=dict)
    """Settings that depart from the protocol, or stand where there is none."""
    dtype: str = AUTO
    """Its precision; "auto": the checkpoint's."""
    revision: str | None = None
    """The branch, tag or commit of a model on the hub."""
    load_in_4bit: bool = False
    """Whether bitsandbytes keeps its weights in four bits."""
    data: str | None = None
    """The data folder that the benchmarks of `bench` lie in."""
    bench: Mapping[str, BenchSpec] = field(default_factory=dict)
    """Registered benchmarks to find in `data`."""
    only: tuple[str, ...] = ()
    """Names of the parts of `bench` to ask; empty: all."""
    limit: int | None = None
    """Ask only about the first so many images of each part."""
    max_new_tokens: int | None = None
    """The token limit of an answer; None: the benchmark's."""
    first_token: bool = True
    """Whether a first token that reads yes or no decides a yes/no question; else each answer is
    generated to its end."""
    decode: tuple[str, ...] = (GREEDY, SAMPLE)
    seeds: tuple[int, ...] = (0, 1, 2)
    temperature: float = 1.0
    top_k: int | None = None
    """When sampling, keep the k most probable tokens."""
    top_p: float | None = None
    """When sampling, keep the smallest set of tokens whose probabilities sum to this."""
    num_beams: int = 4
    """Beams of the decode mode "beam"."""
    batch: int = 64
    threads: int = 0
    """torch's threads while the grid runs; 0 leaves them as they are."""
    resamples: int = 2000
    check: int = 16
    """So many samples of a benchmark are answered by `generate` as well and must agree."""
    world: WorldSpec | None = None
    benchmarks: Mapping[str, BenchmarkSpec] = field(default_factory=dict)
    methods: Mapping[str, MethodSpec] = field(default_factory=dict)
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    position: Position | None = None
    gallery: GallerySpec = field(default_factory=GallerySpec)
    cost: CostSpec = field(default_factory=CostSpec)
    published: tuple[Published, ...] = ()
    """Numbers of papers, shown beside those of the run."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Presets that the grid leaves out on purpose, and why."""

    def __post_init__(self) -> None:
        if self.summary != "":
            check_text("summary", self.summary)
        check_some("model", self.models, "model")
        for model in self.models:
            check_text("model", model)
        check_twice("model", self.models)
        check_names("dtype", (self.dtype,), get_args(Dtype), "dtype")
        for name in ("revision", "data", "protocol"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        for name in ("load_in_4bit", "first_token"):
            if not isinstance(getattr(self, name), bool):
                raise CdkitError(f"{name} must be true or false, got {getattr(self, name)!r}")
        check_names("decode", self.decode, DECODE, "decode mode")
        for seed in self.seeds:
            check_integer("seeds", seed, low=0, high=LARGEST_SEED, why="63 bits")
        if len(set(self.seeds)) < max(len(self.seeds), 1):
            raise CdkitError(f"seeds must be different numbers, at least one: {list(self.seeds)}")
        check_temperature("temperature", self.temperature)
        for name in ("top_k", "limit", "max_new_tokens"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), low=1)
        if self.top_p is not None:
            check_share("top_p", self.top_p)
        check_integer("num_beams", self.num_beams, low=2, high=1000, why="each is a row of a batch")
        check_integer("batch", self.batch, low=1)
        check_integer("threads", self.threads, low=0, high=MOST_THREADS, why=WHY_THREADS)
        check_integer(
            "resamples", self.resamples, low=100, high=10**6, why="more change no shown digit"
        )
        check_integer("check", self.check, low=0)
        if not self.decode or not (self.benchmarks or self.bench):
            raise CdkitError(
                "a grid needs at least one decode mode and one [benchmarks.NAME] or [bench.NAME]"
            )
        if self.only and not self.bench:
            raise CdkitError(f"only names {', '.join(self.only)}, and no benchmark has such parts")
        check_twice("only", self.only)
        for name, spec in self.methods.items():
            check_text("a method's name", name)
            check_text("preset of a method", spec.preset)
        check_some("[methods]", self.methods, "method")
        self._check_references()
        if self.world is None:
            self._refuse_world_files()

    def _check_references(self) -> None:
        method, benchmark = "method of the grid", "benchmark of the grid"
        for title, names in self.tables.items():
            check_some(f"{title} of [tables]", names, "method")
            check_names(f"{title} of [tables]", names, self.methods, method)
        narrowed = {f"benchmarks.{name}": spec.decode for name, spec in self.benchmarks.items()}
        narrowed |= {f"bench.{name}": spec.decode for name, spec in self.bench.items()}
        for name, modes in narrowed.items():
            where = f"decode of [{name}] narrows the grid's"
            check_names(where, modes, self.decode, "decode mode of the grid")
        check_names("[sweeps]", self.sweeps, self.methods, method)
        for name, sweep in self.sweeps.items():
            where = f"[sweeps.{name}]"
            check_some(f"benchmarks of {where}", sweep.benchmarks, "benchmark")
            if not self.bench:  # whose parts are known when the data folder is
                check_names(where, sweep.benchmarks, self.benchmarks, benchmark)
            if not sweep.values:
                raise CdkitError(f"{where} needs a parameter with its values: alpha = [1.0, 2.0]")
            for parameter, values in sweep.values.items():
                check_some(f"{parameter} of {where}", values, "value")
        if self.position is not None:
            where = "[position]"
            if not self.bench:
                check_names(where, (self.position.benchmark,), self.benchmarks, benchmark)
            check_names(where, self.position.methods, self.methods, method)
        for numbers in self.published:
            check_names(f"[[published]] of {numbers.of}", numbers.values, self.methods, method)
        check_names("methods of [gallery]", self.gallery.methods, self.methods, method)
        if self.cost.benchmark and not self.bench:
            check_names("benchmark of [cost]", (self.cost.benchmark,), self.benchmarks, benchmark)
        if self.cost.rounds and GREEDY not in self.decode:
            raise CdkitError(
                "[cost] times greedy answers, but nothing is decoded greedily: add 'greedy' to "
                "decode, or set rounds = 0"
            )
        for name, reason in self.left_out.items():
            check_text(f"{name} of [left_out]", reason)
            if name in {spec.preset for spec in self.methods.values()}:
                raise CdkitError(f"{name} stands in [methods] and in [left_out]: take one out")

    def _refuse_world_files(self) -> None:
        paths: dict[str, tuple[object, ...]] = {
            f"[benchmarks.{name}]": (spec.image_folder, *spec.options.values())
            for name, spec in self.benchmarks.items()
        }
        if self.position is not None:
            paths["[position]"] = (self.position.placement,)
        for where, values in paths.items():
            for value in values:
                if isinstance(value, str) and value.startswith(WORLD_PREFIX):
                    raise CdkitError(f"{where} asks for {value!r}, but the grid has no [world]")

    def chosen(self, model: str) -> ChosenModel:
        """One of the models, and how it is loaded."""
        return ChosenModel(model, self.dtype, self.revision, self.load_in_4bit)

    @cached_property
    def around(self) -> Protocol | None:
        """The protocol with its changes; None where nothing is set."""
        if self.protocol is None and not self.protocol_changes:
            return None
        found = Protocol("none") if self.protocol is None else read_protocol(self.protocol)
        return found.replace(**self.protocol_changes)

    def under(self, protocol: Protocol | None) -> "Grid":
        """The grid as a protocol decodes it, and with its parameters of methods.

        Args:
            protocol: The protocol as it is for one model; None leaves all as it is.

        Returns:
            The grid. A benchmark's own decode modes give way to the protocol's.
        """
        if protocol is None:
            return self
        methods = {
            name: MethodSpec(spec.preset, {**protocol.parameters(spec.preset), **spec.overrides})
            for name, spec in self.methods.items()
        }
        changes: dict[str, Any] = {"methods": methods}
        if protocol.mode is not None:
            changes |= {
                "decode": (protocol.mode,),
                "benchmarks": {n: replace(b, decode=()) for n, b in self.benchmarks.items()},
                "bench": {n: replace(b, decode=()) for n, b in self.bench.items()},
                "top_k": protocol.top_k,
                "top_p": protocol.top_p,
            }
        for name, value in (("temperature", protocol.temperature), ("num_beams", protocol.beams)):
            if value is not None:
                changes[name] = value
        return replace(self, **changes)

    @property
    def base(self) -> str:
        """The method that every difference is taken to: plain, else the first."""
        return PLAIN if PLAIN in self.methods else next(iter(self.methods))

    def decodes(self, narrowed: tuple[str, ...]) -> tuple[Decode, ...]:
        """The grid's decode modes, or those of them that a benchmark narrows them to.

        Where one samples, it comes with each seed.
        """
        return tuple(
            Decode(mode, seed)
            for mode in self.decode
            if mode in (narrowed or self.decode)
            for seed in (self.seeds if mode == SAMPLE else (None,))
        )

    @property
    def decoded(self) -> frozenset[str]:
        """The decode modes that some benchmark runs under."""
        narrowed = [spec.decode for spec in self.benchmarks.values()]
        narrowed += [spec.decode for spec in self.bench.values()]
        asked = [modes or self.decode for modes in narrowed] or [self.decode]
        return frozenset(mode for modes in asked for mode in modes)

    def sections(self) -> Mapping[str, tuple[str, ...]]:
        """Methods as the tables group them; what no table names comes last."""
        named = {name for names in self.tables.values() for name in names}
        rest = tuple(name for name in self.methods if name not in named)
        if not rest:
            return self.tables
        title = "others" if self.tables else "methods"
        return {**self.tables, title: (*self.tables.get(title, ()), *rest)}
