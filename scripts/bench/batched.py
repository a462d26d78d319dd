"""Measure whether training several small networks of one architecture as one batched network is faster.

Each way trains the same members on one thread of one core, like a worker; the ways alternate within one run. On a CPU,
processor time is measured, so that other work on the machine matters little.

alone     one member after the other, as a worker trains them
batched   all members in one step: their parameters stacked (torch.func.stack_module_state), one vmap of the network,
          a separate loss and optimizer for each member, the optimizer on its part of the stack
bound     the same with one optimizer for all members, which then cannot differ in learning rates: an upper bound
workers   on a GPU only: one process per member, all on the same GPU

python scripts/bench/batched.py                                      about nine minutes on one core
python scripts/bench/batched.py --cases vit-8-4-32 lenet5-8 --members 8 --epochs
python scripts/bench/batched.py --batches 128 --members 4
python scripts/bench/batched.py --processes 2 --cases vit-32-8-32    both cores at once; they share a cache
python scripts/bench/batched.py --device cuda --members 2 8          on a GPU, under nine minutes
python scripts/bench/batched.py --cases --spaces                     only how many trials of a search could be batched

Writes batched.json.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import frame
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.image_size import sides
from imgcls_search.space import parse, read_space, shipped
from imgcls_search.training.device import settle_in
from imgcls_search.training.loop import fit
from imgcls_search.training.session import Session
from imgcls_search.worker import image_sets, pipeline
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network to measure, and the shape of its images."""

    model: str
    size: int = 32
    channels: int = 3


def _vit(size: int, patch: int, width: int) -> Model:
    layers = f"vit: {{patch_size: {patch}, width: {width}, depth: 4, heads: 2, dropout: 0, drop_path: 0}}"
    return Model(model=layers, size=size, channels=1 if size == 8 else 3)


def _resnet(size: int, width: int) -> Model:
    return Model(model=f"resnet: {{depths: [1, 1, 1], width: {width}}}", size=size, channels=1 if size == 8 else 3)


MODELS = {
    **{
        f"vit-{size}-{patch}-{width}": _vit(size, patch, width)
        for size, patch in ((8, 4), (8, 2), (32, 8), (32, 4))
        for width in (16, 32, 64)
    },
    **{f"resnet-{size}-{width}": _resnet(size, width) for size in (8, 32) for width in (8, 16)},
    "lenet5-8": Model(model="lenet5: {}", size=8, channels=1),
    "lenet5-32": Model(model="lenet5: {}"),
    "mobilenetv3-32": Model(model="mobilenetv3: {size: small, dropout: 0}"),
}
"""Named by family, side of the image, side of a patch (ViTs), width."""

WAITING = 8
"""Trials that wait at the same time; some of them may share an architecture."""

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that a process needs to train the members."""

    name: str
    config: dict[str, Any]
    data: dict[str, Any]
    members: int
    device: str

    @property
    def prepared(self) -> Prepared:
        """The decoded images."""
        return Prepared.from_dict(self.data)

    @property
    def recipe(self) -> dict[str, Any]:
        """The `training` section of the members' configuration."""
        return TrialConfig.from_dict(self.config).section("training")

    def sessions(self, count: int | None = None) -> list[Session]:
        """Return a session for each member; the members are the same each time."""
        config = TrialConfig.from_dict(self.config)
        several = range(self.members if count is None else count)
        return [pipeline.new_session(config, self.prepared, seed=seed, device=self.device) for seed in several]

    def batches(self, sessions: Sequence[Session]) -> tuple[list[Tensor], list[Tensor]]:
        """Return a random batch for each member: inputs and class numbers."""
        shape, size = self.prepared.shape, sessions[0].recipe.batch_size
        height, width = sides(shape.image_size)
        generator = torch.Generator().manual_seed(0)
        like = (size, self.prepared.channels, height, width)
        inputs = [torch.randn(like, generator=generator).to(self.device) for _ in sessions]
        labels = [torch.randint(shape.classes, (size,), generator=generator).to(self.device) for _ in sessions]
        return inputs, labels


def alone(case: Case, sessions: Sequence[Session]) -> Step:
    """Return a function that takes a step of each member, one after the other."""
    inputs, labels = case.batches(sessions)

    def step() -> None:
        for session, batch, wanted in zip(sessions, inputs, labels, strict=True):
            session.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(session.loss(session.forward(batch), wanted))
            session.optimizer.step()

    for session in sessions:
        session.model.train()
    return step


def batched(case: Case, sessions: Sequence[Session]) -> Step:
    """Return a function that takes a step of all members at once, with a separate optimizer for each member."""
    stack = Stack(sessions)
    inputs, labels = case.batches(sessions)
    together = torch.stack(inputs)

    def step() -> None:
        several = zip(sessions, stack.forward(together), labels, strict=True)
        torch.autograd.backward([session.loss(logits, wanted) for session, logits, wanted in several])
        stack.hand_out_gradients()
        for session in sessions:
            session.optimizer.step()

    return step


def bound(case: Case, sessions: Sequence[Session]) -> Step:
    """Return a function that takes a step of all members at once, with one loss and one optimizer."""
    stack = Stack(sessions)
    inputs, labels = case.batches(sessions)
    together, wanted = torch.stack(inputs), torch.cat(labels)
    optimizer = torch.optim.AdamW(stack.parameters.values(), lr=1e-3, fused=True)

    def step() -> None:
        logits = stack.forward(together).flatten(0, 1)
        torch.autograd.backward(nn.functional.cross_entropy(logits, wanted) * len(sessions))
        optimizer.step()

    return step


WAYS: dict[str, Callable[[Case, Sequence[Session]], Step]] = {"alone": alone, "batched": batched, "bound": bound}


class Stack:
    """The networks of several sessions as one; the tensors of each session become views of the stack."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.models = [session.model.to(memory_format=torch.contiguous_format) for session in sessions]
        self.network = copy.deepcopy(self.models[0]).train()
        parameters, self.buffers = stack_module_state(self.models)
        self.parameters = {name: values.detach().clone().requires_grad_() for name, values in parameters.items()}
        self.parts: list[list[nn.Parameter]] = []
        for number, model in enumerate(self.models):
            named = dict(model.named_parameters())
            for name, parameter in named.items():
                parameter.data = self.parameters[name].data[number]
            for name, values in model.named_buffers():
                holder, _, leaf = name.rpartition(".")
                model.get_submodule(holder)._buffers[leaf] = self.buffers[name][number].view_as(values)
            self.parts.append([named[name] for name in self.parameters])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [members, N, classes] of inputs [members, N, C, H, W]."""
        for values in self.parameters.values():
            values.grad = None

        def of_one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Tensor) -> Any:
            return functional_call(self.network, (parameters, buffers), (batch,))

        found: Tensor = torch.vmap(of_one)(self.parameters, self.buffers, inputs)
        return found

    def hand_out_gradients(self) -> None:
        """Give each member its part of the gradients."""
        several = [values.grad.unbind() for values in self.parameters.values() if values.grad is not None]
        for number, parts in enumerate(self.parts):
            for parameter, gradients in zip(parts, several, strict=True):
                parameter.grad = gradients[number]


def main() -> None:
    """Measure what the arguments name, print it and write it."""
    arguments = _arguments()
    with frame.results("batched", arguments.out) as results, tempfile.TemporaryDirectory() as folder:
        results["settings"] = {name: value for name, value in vars(arguments).items() if name != "out"}
        with crew(max(arguments.members) if arguments.device != "cpu" else arguments.processes) as everyone:
            results["cases"] = [
                measure(arguments, everyone, make_case(arguments, name, batch, members, Path(folder)))
                for name in arguments.cases
                for batch in arguments.batches
                for members in arguments.members
            ]
        if arguments.spaces is not None:
            results["spaces"] = [count_alike(name) for name in arguments.spaces or shipped.names()]


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--cases", nargs="*", choices=list(MODELS), default=list(MODELS), metavar="CASE")
    parser.add_argument("--batches", nargs="+", type=int, default=[32], help="batch sizes; default: 32")
    parser.add_argument("--members", nargs="+", type=int, default=[2, 4, 8], help="default: 2 4 8")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way; default: 3")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="of each measurement, one step at least; default: 0.2"
    )
    parser.add_argument("--processes", type=int, default=1, help="on a CPU: cores that work at once; default: 1")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    parser.add_argument("--epochs", action="store_true", help="also the share of a trial's epoch that is such steps")
    parser.add_argument("--spaces", nargs="*", help="also how many trials of shipped spaces are alike; no name: of all")
    return parser.parse_args()


def make_case(arguments: argparse.Namespace, name: str, batch: int, members: int, folder: Path) -> Case:
    """Return a case with its images decoded."""
    model = MODELS[name]
    text = f"""
        data: {{digits: {{}}}}
        image: {{size: {model.size}, channels: {model.channels}}}
        augment: {{crop_padding: 1}}
        model: {{{model.model}}}
        optimizer: {{adamw: {{lr: 1e-3}}}}
        schedule: {{constant: {{}}}}
        training: {{epochs: 9, batch_size: {batch}, precision: fp32, device: {arguments.device}}}
    """
    config = parse(text, catalog(), source=__file__).config()
    data = pipeline.prepare_data(config, folder / "decoded").to_dict()
    return Case(name=name, config=config.to_dict(), data=data, members=members, device=arguments.device)


def measure(arguments: argparse.Namespace, everyone: Crew, case: Case) -> dict[str, Any]:
    """Measure the ways alternately, and compare them."""
    on_gpu = arguments.device != "cpu"
    # On a GPU, compare one process with several that share it.
    counts = {"alone": 1, "batched": 1, "bound": 1, "workers": case.members}
    ways = counts if on_gpu else dict.fromkeys(WAYS, arguments.processes)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    everyone.ask(case)
    difference = everyone.ask("difference", 1)[0]
    for turn in range(arguments.rounds):
        order = [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]
        for way in order:
            rates[way].append(sum(everyone.ask((way, arguments.seconds), ways[way])))
    share = everyone.ask("share", 1)[0] if arguments.epochs else None
    result: dict[str, Any] = {
        "case": case.name,
        "batch": case.recipe["batch_size"],
        "members": case.members,
        "steps_per_second": {way: frame.spread(found, 2) for way, found in rates.items()},
        "gradients_differ_by": difference,
    }
    for way in ways:
        if way != "alone":
            result[f"{way}_over_alone"] = _ratio(rates[way], rates["alone"])
    if on_gpu:
        result["batched_over_workers"] = _ratio(rates["batched"], rates["workers"])
    if share is not None:
        gain = result["batched_over_alone"]["median"]
        result["share_of_epoch"] = round(share, 3)
        result["epoch_gains"] = round(1 / (1 - share + share / gain), 3)
    show(result)
    return result


def _ratio(rates: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    return frame.spread([rate / other for rate, other in zip(rates, others, strict=True)], 3)


def show(result: dict[str, Any]) -> None:
    """Print the results of a case in one line."""
    ratios = {key: value for key, value in result.items() if "_over_" in key}
    shown = ", ".join(
        f"{key.replace('_', ' ')} {found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"
        for key, found in ratios.items()
    )
    whole = f", of an epoch {result['epoch_gains']:.2f}" if "epoch_gains" in result else ""
    print(
        f"{result['case']}, batch {result['batch']}, {result['members']} members: {shown}{whole}; gradients differ by "
        f"{result['gradients_differ_by']:.0e}",
        flush=True,
    )


class Crew:
    """The processes that train; each has its own copy of all members."""

    def __init__(self, members: Sequence[Connection]) -> None:
        self.members = members

    def ask(self, question: Any, count: int | None = None) -> list[Any]:
        """Send a question to all processes, or to the first `count`, and return their answers."""
        some = self.members[:count]
        for connection in some:
            connection.send(question)
        found = [connection.recv() for connection in some]
        for each in found:
            if isinstance(each, Exception):
                raise each
        return found


@contextmanager
def crew(size: int) -> Iterator[Crew]:
    """Yield `size` processes, each on a separate core if there are enough."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(size)]
    processes = [context.Process(target=_serve, args=(its, number)) for number, (_, its) in enumerate(pipes)]
    for process, (_, its) in zip(processes, pipes, strict=True):
        process.start()
        its.close()
    try:
        yield Crew([mine for mine, _ in pipes])
    finally:
        for process, (mine, _) in zip(processes, pipes, strict=True):
            mine.close()
            process.join()


def _serve(connection: Connection, number: int) -> None:
    steps: dict[str, Step] = {}
    with suppress(EOFError):
        case: Case = connection.recv()
        _settle_in(case.device, number)
        connection.send(None)
        while True:
            question = connection.recv()
            try:
                if isinstance(question, Case):
                    case, steps, answer = question, {}, None
                else:
                    answer = _answer(case, steps, question)
            except Exception as error:
                connection.send(error)
            else:
                connection.send(answer)


def _settle_in(device: str, number: int) -> None:
    settle_in(device)
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {CORES[-1 - number % len(CORES)]})


def _answer(case: Case, steps: dict[str, Step], question: Any) -> float:
    """Return the answer to a question about a case."""
    if question == "difference":
        return difference(case)
    if question == "share":
        return share_of_epoch(case)
    way, seconds = question
    return _rate(case, steps, way, seconds)


def _rate(case: Case, steps: dict[str, Step], way: str, seconds: float) -> float:
    """Return the steps of single members per second."""
    # A worker trains one member.
    count = 1 if way == "workers" else case.members
    if way not in steps:
        steps[way] = WAYS["alone" if way == "workers" else way](case, case.sessions(count))
        steps[way]()
    started, taken = _now(case.device), 0
    while True:
        steps[way]()
        taken += 1
        if (passed := _now(case.device) - started) >= seconds:
            return count * taken / passed


def _now(device: str) -> float:
    """Return the processor time in seconds; on a GPU wait until it is done and return the wall time."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def difference(case: Case) -> float:
    """Return the largest relative difference (norms) of a member's gradients and running statistics after one step."""
    apart, together = case.sessions(), case.sessions()
    alone(case, apart)()
    batched(case, together)()
    return max(
        float((theirs - ours).norm() / theirs.norm())
        for one, other in zip(apart, together, strict=True)
        for theirs, ours in zip(_of_step(one.model), _of_step(other.model), strict=True)
        if len(theirs)
    )


def _of_step(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return all gradients and all buffers (running statistics) of a network, each as one vector."""
    gradients = [parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(gradients), torch.cat([torch.empty(0), *(values.cpu().reshape(-1) for values in model.buffers())])


def share_of_epoch(case: Case) -> float:
    """Return the share of a trial's epoch in a search that consists of the steps measured here."""
    (session,) = case.sessions(1)
    train, validation = image_sets.image_sets(case.prepared, "train", case.device)
    step = alone(case, case.sessions(1))
    steps = -(-len(train) // session.recipe.batch_size)
    shares = []
    epochs = fit(session, train, validation, until_epoch=session.recipe.epochs)
    for number in range(4):
        started = _now(case.device)
        next(epochs)
        middle = _now(case.device)
        for _ in range(steps):
            step()
        # The first one warms up.
        if number:
            shares.append((_now(case.device) - middle) * len(train) / (steps * session.recipe.batch_size))
            shares[-1] /= middle - started
    return min(1.0, statistics.median(shares))


def count_alike(name: str) -> dict[str, Any]:
    """Return how many waiting trials of a search share an architecture, batch size and kind of optimizer.

    Dropout may differ: a batched training would have to draw it for each member separately.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = read_space(shipped.path_of(name), catalog())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = [_kind(space.sample(study.ask())) for _ in range(40 * WAITING)]
    windows = [Counter(kinds[first : first + WAITING]) for first in range(0, len(kinds), WAITING)]
    most = [max(window.values()) for window in windows]
    result = {"space": name, "waiting": WAITING, "draws": len(kinds), "most_alike": round(statistics.fmean(most), 2)}
    print(f"{name}: of {WAITING} trials that wait, {result['most_alike']} on average are of one architecture")
    return result


def _kind(config: TrialConfig) -> str:
    model = config.component("model")
    args = {key: value for key, value in model.args.items() if key not in ("dropout", "drop_path")}
    batch, optimizer = config.section("training")["batch_size"], config.component("optimizer").name
    return repr((model.path, sorted(args.items()), sorted(config.section("image").items()), batch, optimizer))


if __name__ == "__main__":
    main()
