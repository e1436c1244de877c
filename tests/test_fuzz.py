"""Random models, random arguments, damaged files: all of check holds, and nothing ends in a traceback.

`pytest tests/test_fuzz.py --fuzz 20` draws twenty times as many.
"""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from command_line import run
from cut_anywhere import plan_at
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from random_nets import (
    Program,
    RandomNet,
    programs,
    random_inputs,
)
from torch import Tensor, fx

import dni_fx
from dni_fx.capture.frontends import capture
from dni_fx.compiler import rewrite
from dni_fx.cuts.asked import separated
from dni_fx.errors import CaptureError, DniFxError, NoLegalCutError
from dni_fx.graph.flow import dataflow
from dni_fx.graph.kept_order import kept_order
from dni_fx.model import tensors_in
from dni_fx.model.inputs import Inputs
from dni_fx.partition.positions import find_positions
from dni_fx.passes.reorder_nodes import ReorderNodes
from dni_fx.settings import Settings
from dni_fx.synthesizers.exits import WEIGHTS

MODELS = {"auto": 36, "modules": 40, "export": 16}
FLOOR = {"auto": 0.9, "modules": 0.6, "export": 0.6}  # the least share of a part's models that is cut and checked
PARTS = 4
RECOMPUTES = 0.1  # the share of the models whose segments compute their activations again
REORDERED = 0.3  # the share of the models whose nodes run in another order


def mean_square(outputs: Any, _target: object) -> Tensor:
    return torch.stack([tensor.square().mean() for tensor in tensors_in(outputs) if tensor.requires_grad]).sum()


def random_synthesizer(choice: random.Random) -> tuple[str, Any]:
    """A synthesizer, and the loss if it is an exit, which it is in half of the draws."""
    units, weights = choice.choice([0, 1, 2, "all"]), choice.choice(WEIGHTS)
    return (f"exit(units={units!r}, weights={weights!r})", mean_square) if choice.random() < 0.5 else ("auto", None)


def random_order(graph: fx.Graph, choice: random.Random) -> list[str]:
    """Any order in which the nodes may run, with the inputs first."""
    kept = kept_order(graph)
    assert not kept.whole
    flow: nx.DiGraph[str] = nx.DiGraph(list(kept.pairs))
    flow.add_edges_from((source.name, node.name) for node in graph.nodes for source in node.all_input_nodes)
    flow.add_nodes_from(node.name for node in graph.nodes)
    ends = {"placeholder": -len(graph.nodes), "output": 2}  # the inputs stay in order
    rank = {
        node.name: ends.get(node.op, choice.random()) + k * (node.op == "placeholder")
        for k, node in enumerate(graph.nodes)
    }
    return list(nx.lexicographical_topological_sort(flow, rank.__getitem__))


def check_cut_anywhere(program: Program, frontend: str, seed: int) -> bool:
    """Cut at one to three random legal places, in either mode, and check; False: there was no legal place."""
    net = RandomNet(program)
    inputs = random_inputs(net)
    choice = random.Random(seed)
    try:
        module, used, _ = capture(net, Inputs(inputs), frontend)
        reordering = random.Random(seed + 1)
        if module.dni_runs_graph and reordering.random() < REORDERED:
            ReorderNodes(random_order(module.graph, reordering))(module)
        flow = dataflow(module.graph)
        legal = [p for p in find_positions(flow) if not p.obstacle]
        if not legal:
            return False
        places = sorted(choice.sample(legal, min(len(legal), choice.randint(1, 3))), key=lambda p: p.index)
        places = separated(flow, places, drop=True)
        unlock = choice.choice(["none", "backward"])
        recomputes = module.dni_runs_graph and choice.random() < RECOMPUTES
        plan = plan_at(module.graph, places, used, unlock if recomputes else "")
        synthesizer, loss = random_synthesizer(choice) if module.dni_runs_graph else ("auto", None)
        try:
            rewritten = rewrite(module, plan, synthesizer, Settings(unlock=unlock, loss=loss))
        except DniFxError as error:  # parts of some programs give the outputs nothing
            assert loss is not None and str(error).startswith("no exit from the cut after"), error
            rewritten = rewrite(module, plan, "auto", Settings(unlock=unlock))
    except (CaptureError, NoLegalCutError) as error:
        assert frontend != "auto" or isinstance(error, NoLegalCutError) or "modules: no submodule" in str(error)
        return False
    failed = [(c.name, c.figure) for c in dni_fx.check(rewritten, inputs).checks if not c.passed]
    pieces = [segment.recomputed for segment in plan.segments]
    assert not failed, (failed, [p.after for p in places], unlock, used, synthesizer, pieces)
    return True


def _fuzz(frontend: str, record: Callable[[str, object], None], share: float, factor: float, part: int = 0) -> None:
    checked: list[bool] = []
    settled = settings(
        max_examples=max(1, int(MODELS[frontend] * share * factor)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )

    @settled
    @given(programs(), st.integers(0, 10**6))
    def holds(program: Program, seed: int) -> None:
        torch.manual_seed(0)
        checked.append(check_cut_anywhere(program, frontend, seed))

    (seeded(part)(holds) if factor == 1 else holds)()
    record(f"{frontend}: cut and checked", f"{sum(checked)} of {len(checked)}")  # in the report of --junitxml
    assert sum(checked) >= FLOOR[frontend] * len(checked), f"only {sum(checked)} of {len(checked)} were checked"


@pytest.mark.parametrize("frontend", ["auto", "modules", "export"])
def test_a_few_random_models(frontend: str, record_property: Callable[[str, object], None]) -> None:
    _fuzz(frontend, record_property, 0.02, 1)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("frontend", ["auto", "modules", "export"])
def test_random_models(
    frontend: str, part: int, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    _fuzz(frontend, record_property, 1 / PARTS, request.config.getoption("--fuzz"), part)


# ------------------------------------------------------------------------------------------- the command line
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

model = Net()
example_inputs = torch.rand(3, 4)
"""
TARGETS = [
    "net.py",
    "net.py:Net",
    "net.py:model",
    "net.py:nothing",
    "no.py",
    "os.path:join",
    "net",
    "",
    "out",
    "net.py:",
]
WORDS = [
    "auto",
    "2",
    "0",
    "-1",
    "a",
    "tanh",
    "b,a",
    "every:Linear",
    "every:",
    "marked",
    "out/plan.json",
    "nan",
    "1e9",
    ",",
]
OPTIONS = [
    "--cuts",
    "--input",
    "--synthesizer",
    "--unlock",
    "--mix",
    "--classes",
    "--frontend",
    "--output",
    "--inside",
    "--wrong",
]
VALUES = [
    *WORDS,
    "3x4",
    "x=3x4",
    "3x4:int64:0-5",
    "3x",
    "none",
    "backward",
    "checkpoint",
    "linear",
    "mlp",
    "conv",
    "fx",
    "export",
    "net.py",
]
FLAGS = ["--json", "--no-diff", "--no-verify", "--force", "-h"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    assert run(monkeypatch, "rewrite", "net.py", "-o", "out", "--cuts", "a") == 0
    return tmp_path


def _fine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    capsys.readouterr()
    code = run(monkeypatch, *arguments)
    shown = capsys.readouterr()
    assert code in (0, 1, 2, 3), (arguments, code, shown.err)
    assert "Traceback" not in shown.err + shown.out, arguments
    if code and "Usage" not in shown.err and arguments[0] != "check":
        assert len(shown.err.strip().splitlines()) <= 2, (arguments, shown.err)


def test_random_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    choice = random.Random(0)
    for _ in range(int(120 * request.config.getoption("--fuzz"))):
        arguments = [choice.choice(["rewrite", "plan", "check", "diff", "synthesizers"]), choice.choice(TARGETS)]
        for _ in range(choice.randint(0, 3)):
            arguments += [choice.choice(OPTIONS), choice.choice(VALUES)]
        arguments += choice.sample(FLAGS, choice.randint(0, 2))
        _fine(monkeypatch, capsys, *arguments)
        for made in folder.glob("*"):  # what a legal rewrite wrote
            if made.is_dir() and made.name not in ("out", "__pycache__"):
                shutil.rmtree(made)


def _damage(data: bytes, choice: random.Random, *, text: bool) -> bytes:
    """Cut off, taken out, doubled, exchanged; in text also words and small numbers for others."""
    place = choice.randrange(len(data))
    end = min(len(data), place + choice.randint(1, 40))
    kind = choice.randrange(6 if text else 4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[end:]
    if kind == 2:
        return data[:end] + data[place:]
    if kind == 3:
        return data[:place] + bytes(choice.randrange(256) for _ in range(3)) + data[place + 3 :]
    words = list(re.finditer(rb"[A-Za-z_]+|\d+|null|\[\]", data))
    word = choice.choice(words)
    other = choice.choice([b"null", b"-1", b"0", b"7", b'"text"', b"[]", b"{}", b"true", choice.choice(words).group()])
    return data[: word.start()] + other + data[word.end() :]


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "model.py"])
def test_damaged_files(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    choice = random.Random(0)
    good = (folder / "out" / name).read_bytes()
    for _ in range(int(60 * request.config.getoption("--fuzz"))):
        (folder / "out" / name).write_bytes(_damage(good, choice, text=name != "weights.safetensors"))
        _fine(monkeypatch, capsys, "check", "out")
        if name == "plan.json":
            _fine(monkeypatch, capsys, "plan", "net.py", "--cuts", "out")
