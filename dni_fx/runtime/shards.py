"""`torch.distributed.fsdp.fully_shard` by segment, and what it must leave whole."""

from collections import Counter
from typing import Any

from torch import fx, nn

from dni_fx.errors import DniFxError
from dni_fx.model import at_path, is_shard, is_sharded, meshes_in
from dni_fx.runtime.exits import Exit
from dni_fx.runtime.module import DecoupledModule, rewritten

__all__ = ["check_means", "check_whole", "shard_segments", "shard_synthesizers"]


def shard_segments(net: nn.Module, **options: Any) -> None:
    """Split the parameters of a rewritten net over processes by `fully_shard`, one group for each segment.

    A process has the parameters of one segment whole at a time. The parameters of synthesizers, those that several
    segments or exits use, and those that belong to no layer are whole throughout a step. Make the optimizer after this:
    of `net.parameters()`, or a `dni_fx.SegmentOptimizer`.

    Args:
        net: Returned by `dni_fx.transform`.
        options: Given to `fully_shard`, such as `mesh` and `mp_policy`.

    Raises:
        DniFxError: If the net has no graph, or has parameters that are split already.
    """
    from torch.distributed.fsdp import fully_shard  # imported where it is used: PyTorch may be built without it

    net = rewritten(net)
    if not net.dni_runs_graph:
        raise DniFxError(
            'shard_segments needs a graph: with the front end "modules", call fully_shard as with any model'
        )
    if is_sharded(net):
        raise DniFxError("fully_shard has split parameters of the net already")
    for names in _modules_by_segment(net):
        modules: list[nn.Module] = [net.get_submodule(name) for name in names]
        if modules:
            fully_shard(modules, **options)
    fully_shard(net, **options)


def _modules_by_segment(net: DecoupledModule) -> list[list[str]]:
    """The modules with parameters that each segment calls once, and that no other segment and no exit uses."""
    by_name = {node.name: node for node in net.graph.nodes}
    shared = {p for path in _run_by_exits(net) for p in _parameters(at_path(net, path))}
    called = [
        [str(by_name[name].target) for name in segment.nodes if name in by_name and by_name[name].op == "call_module"]
        for segment in net.dni.plan.segments
    ]
    used = Counter(p for names in called for name in names for p in _parameters(net.get_submodule(name)))
    used.update(p for node in net.graph.nodes if node.op == "get_attr" for p in _parameters(_value(net, node)))
    found = []
    for names in called:
        own = {name: _parameters(net.get_submodule(name)) for name in names}
        found.append(
            [name for name, held in own.items() if held and all(used[p] == 1 and p not in shared for p in held)]
        )
    return found


def _value(net: DecoupledModule, node: fx.Node) -> Any:
    return at_path(net, str(node.target))


def _parameters(value: Any) -> list[nn.Parameter]:
    if isinstance(value, nn.Module):
        return list(value.parameters())
    return [value] if isinstance(value, nn.Parameter) else []


def _run_by_exits(net: DecoupledModule) -> list[str]:
    """The paths of the modules and parameters of the model that exits use while other segments run."""
    exits = [cut.exit for cut in net.dni.plan.cuts if cut.exit is not None]
    return [path for e in exits for path in e.borrowed if path not in e.copied or e.weights == "ema"]


def check_means(module: nn.Module) -> None:
    """Check that the running means of weights in exits are whole: they move in the forward pass.

    Raises:
        DniFxError: If `fully_shard` has split one.
    """
    for exit in module.modules():
        if isinstance(exit, Exit) and exit.plan.weights == "ema" and is_sharded(exit):
            raise DniFxError("exit(weights='ema') has running means, which fully_shard splits: use weights='copy'")


def check_whole(net: DecoupledModule) -> None:
    """Check that exits find whole the layers that they run at a cut.

    Raises:
        DniFxError: If `fully_shard` has split one of these layers apart from the net, or their running means.
    """
    check_means(net)
    for path in _run_by_exits(net):
        if any(map(is_shard, _parameters(at_path(net, path)))):
            raise DniFxError(
                f"exits run {path!r} at a cut, where fully_shard has split its parameters: leave it to "
                "fully_shard(net), as dni_fx.shard_segments(net) does"
            )


def shard_synthesizers(net: DecoupledModule) -> None:
    """Split the parameters of the synthesizers as those of a model that was split before the rewrite.

    Raises:
        DniFxError: If the net has exits: they run layers while the model has shards of them.
    """
    original = net.dni_captured.original
    meshes = [] if original is None else meshes_in(original)
    if meshes and net.dni.exits:
        raise DniFxError("exits run layers of the model: transform the model before fully_shard splits it")
    if original is not None and meshes:
        net.__dict__["_parameters"] = original._parameters  # `fully_shard` assigns whole parameters and shards there
        from torch.distributed.fsdp import fully_shard

        for synthesizer in net.dni.synthesizers.values():
            fully_shard(synthesizer, mesh=meshes[0])
