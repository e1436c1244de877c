"""The measurement of memory against cases worked out by hand, and against what torch's own CPU allocator reports."""

import torch
from torch import Tensor, nn

from dni_fx.bench.live_bytes import LiveBytes, allocator_trace, training_peak

LENGTH = 5


def test_no_graph() -> None:
    x = torch.rand(1000)
    size = x.untyped_storage().nbytes()
    with LiveBytes() as m:
        y = x + 1
        assert (m.live, m.peak, m.outside) == (size, size, size)
        view = y.view(10, 100).t()[2:].detach()
        y.add_(1).relu_()
        y[3:5].zero_()
        assert (m.live, m.peak) == (size, size), "views and in-place ops add nothing"
        del y
        assert m.live == size, "a view keeps its storage"
        del view
        assert m.live == 0
        y = (x * 2).exp() + 1
        assert (m.live, m.peak) == (size, 2 * size), "temporaries come and go"
        out = torch.empty(0)
        torch.add(x, 1, out=out)
        assert m.live == 2 * size, "an op that resizes"
        del y, out
        for _ in range(3000):  # addresses are used again
            _ = (x + 1).view(-1)
        del _
        fresh = torch.tensor([1.0, 2.0])
        assert (m.live, m.blocks[id(fresh.untyped_storage())].nbytes) == (8, 8)
        x.mul_(2)
        assert m.outside == size and m.live == 8, "what is older does not become new"
    assert all(p.phase == "forward" for p in m.trace) and m.trace[-1].live == 8


def test_chain() -> None:
    """relu saves its result. The worst is the second backward op: all results, as `y` holds the last; 2 gradients."""
    x = torch.rand(1000, requires_grad=True)

    def step() -> None:
        y = x
        for _ in range(LENGTH):
            y = y.relu()
        y.sum().backward()

    m = training_peak(step)
    size, scalars = 4000, 8  # the loss and its gradient
    assert m.forward_end == LENGTH * size + scalars, m.forward_end
    assert (m.peak, m.peak_phase) == ((LENGTH + 2) * size + scalars, "backward"), m.peak
    assert m.peak_op == "aten.threshold_backward.default" and m.trace[m.peak_index].live == m.peak
    assert m.live == size, "x.grad is left"
    x.grad = None
    assert m.live == 0
    assert training_peak(step).trace == m.trace, "it repeats"
    x.grad = None
    assert max(allocator_trace(step)) == m.peak


def test_linears() -> None:
    """Linear saves its input, relu its result: one tensor a layer, and the mean saves nothing."""
    batch, width, depth = 32, 64, 4
    net = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))
    optimizer = torch.optim.Adam(net.parameters())
    x = torch.rand(batch, width)

    def step() -> None:
        net(x).mean().backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    m = training_peak(step, net.parameters())
    grads = sum(p.numel() for p in net.parameters()) * 4
    assert m.forward_end == depth * batch * width * 4 + 8, m.forward_end
    assert m.live == grads, "the gradients are left, and nothing else"
    assert m.peak >= grads == sum(g.nbytes for g in m.gradients)
    # All results, the gradient of the last one, and that of what it was made of.
    assert max(m.activations) == (depth + 2) * batch * width * 4 + 8
    assert m.activations[-1] == 0
    assert {p.phase for p in m.trace} == {"forward", "backward", "optimizer"}
    optimizer.zero_grad()
    assert m.live == 0
    # Within Adam's division by a Python number, that number is a tensor for the kernel, twice: as float64 and float32.
    assert max(allocator_trace(step)) == m.peak + 12


def test_nested() -> None:
    """A local backward pass during forward frees its graph before the next part runs."""
    x = torch.rand(1000, requires_grad=True)

    def part(h: Tensor) -> Tensor:
        h = h.exp().exp().exp()
        h.backward(torch.ones_like(h))
        return h.detach().requires_grad_()

    def step() -> None:
        h = part(x)
        h.exp().sum().backward()

    m = training_peak(step)
    # Of part: three results, the gradient given (held by the caller), that of the node before and of this one.
    assert m.peak == 6 * 4000 and m.peak_phase == "backward", (m.peak, m.peak_op)
    assert m.forward_end == 3 * 4000 + 8, m.forward_end  # h, its exp, and x.grad
    phases = [p.phase for p in m.trace]
    assert phases.index("backward") < len(phases) - 1 - phases[::-1].index("forward")
    assert m.live == 4000, m.live  # x.grad; h and with it h.grad are gone
    x.grad = None
    assert max(allocator_trace(step)) == m.peak


def test_gradients_that_another_hook_uses_up() -> None:
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    x = torch.rand(8, 64)
    m = training_peak(lambda: net(x).mean().backward(), net.parameters())
    assert len(m.gradients) == 8
    assert max(m.activations) <= 6 * x.nbytes
