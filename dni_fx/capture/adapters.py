"""Adapters of `peft`: a layer and the small matrices beside it are one layer, which no cut may part."""

from dni_fx.graph import record_of
from dni_fx.model import is_adapter
from dni_fx.runtime import DecoupledModule

__all__ = ["keep_adapters_whole"]


def keep_adapters_whole(net: DecoupledModule) -> None:
    """Forbid cuts inside an adapter; after its last node one is allowed."""
    adapters = {name for name, module in net.named_modules() if is_adapter(module)}
    if not adapters:
        return
    open_after: set[str] = set()  # calls of adapters of which a later node is a part
    for node in reversed(net.graph.nodes):
        record = record_of(node)
        within = [call for call in record.scope if call in open_after]
        if within and not record.obstacle:
            record.obstacle = f"it lies in the adapter {within[0]!r}"
        open_after |= {call for call in record.scope if call.partition("@")[0] in adapters}
