"""The schedule of a decoupled pipeline: each stage trains on a microbatch as soon as it has the activation."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dni_fx.errors import DniFxError, PeerError, described, first_line
from dni_fx.model import is_sharded, own_part
from dni_fx.pipeline.actions import Action, Kind, actions, evaluation
from dni_fx.pipeline.batch import Batch
from dni_fx.pipeline.connection import Connection
from dni_fx.pipeline.link import LinkError
from dni_fx.pipeline.replay import Replay
from dni_fx.pipeline.replicas import prepare_split, replica_groups
from dni_fx.pipeline.shared import SharedWeights
from dni_fx.pipeline.stage import Stage
from dni_fx.pipeline.targets import Targets
from dni_fx.runtime import end_backward

__all__ = ["ScheduleDecoupled"]


class ScheduleDecoupled:
    """Trains a stage of a pipeline, with the interface of the schedules of `torch.distributed.pipelining`.

    A stage takes an activation, runs forward and its own backward passes, sends its activation on, updates its weights,
    and takes the next. It never waits for a stage above it. Where synthesizers learn, the gradients of the stage above
    train them when they come; where a cut has an exit, no gradients are sent.

    Args:
        stage: Of `dni_fx.pipeline.stages`. The process with rank k in `group` has stage k.
        n_microbatches: The number of parts of a batch, in all processes the same.
        loss_fn: A function of (output, target) that returns the mean loss of a microbatch; the last stage calls it.
        optimizer: Of the parameters of the stage. With `sync`, None: gradients are left in the parameters, the mean
            over the microbatches, and the training loop steps and erases them.
        sync: All microbatches of a step see the same weights; then the stage waits for all gradients, and updates once.
            The results are those of the cut net in one process.
        max_age: The most updates after which a gradient from above still trains a synthesizer; the activations of so
            many microbatches are kept for it. None: 8 for each stage.
        refresh: An exit that uses weights of a later stage has copies of them, renewed after so many updates of that
            stage. With `sync` they are always the same.
        group: The processes of the pipeline; None: all.
        replicas: The processes that have the same stage, each in a pipeline of its own: they begin with the weights of
            the first, and average their gradients before each update. None: there is one pipeline, or `fully_shard` has
            split the stage over them.
        timeout: Seconds after which a wait for another process ends with a PeerError.
        elastic: When another process stops, the stages below it train on, and the stage above it trains again on the
            last microbatches that it has. `step` raises no PeerError then, `eval` does in the stages above.

    Raises:
        DniFxError: If an argument is wrong; in the first step, if the processes have not the stages of one net.
    """

    def __init__(
        self,
        stage: Stage,
        n_microbatches: int,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        sync: bool = False,
        max_age: int | None = None,
        refresh: int = 10,
        group: dist.ProcessGroup | None = None,
        replicas: dist.ProcessGroup | None = None,
        timeout: float = 60.0,
        elastic: bool = False,
    ) -> None:
        if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise DniFxError(f"timeout={described(timeout)}: expected seconds, more than 0")
        _check_counts(n_microbatches=n_microbatches, refresh=refresh, max_age=1 if max_age is None else max_age)
        _check_stage(stage, loss_fn, optimizer, sync)
        if sync and elastic:
            raise DniFxError("elastic=True needs sync=False: with sync=True each stage waits for those above it")
        self.stage, self.n_microbatches, self.loss_fn, self.optimizer = stage, n_microbatches, loss_fn, optimizer
        self.sync, self.refresh, self.timeout, self.elastic = sync, refresh, timeout, elastic
        self.group, self.replicas = group, replicas
        self.targets = Targets(stage, sync, 8 * stage.count if max_age is None else max_age)
        self.steps = self.updates = self.microbatches = 0
        self._connection: Connection | None = None
        self._shared: SharedWeights | None = None
        self._replay = Replay()
        self._dropped = 0
        self._closed = False
        self._waited = self._total = 0.0

    def step(self, *args: Any, target: Any = None, losses: list[Tensor] | None = None, **kwargs: Any) -> Any:
        """Train on a batch. A stage in eval mode is set to train mode; else all modules keep their modes.

        Args:
            args: The arguments of the net, for the first stage. Tensors are split along their first axis.
            target: For the last stage, the second argument of `loss_fn`. For the first stage, the labels of
                synthesizers and exits, unless `dni_context` is given.
            losses: A list to which the last stage appends the loss of each microbatch; for `eval`, None: no loss is
                computed.
            kwargs: `dni_context`, for the first stage.

        Returns:
            In the last stage the outputs of the microbatches, joined; else None.

        Raises:
            PeerError: If another process is gone, or does not answer.
        """
        connection = self.connect()
        if not self.stage.training:
            self.stage.train()
        planned = actions(
            self.stage.index,
            self.stage.count,
            self.n_microbatches,
            sync=self.sync,
            learns=self.targets.wanted,
            learns_below=connection.learns_below,
        )
        if self.sync and self.optimizer is not None:
            self.optimizer.zero_grad()
        earlier = self._set_aside() if self.sync else {}
        outputs = self._do(planned, (args, target, kwargs, self.loss_fn), losses)
        for parameter, gradient in earlier.items():
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        return outputs

    def eval(self, *args: Any, target: Any = None, losses: list[Tensor] | None = None, **kwargs: Any) -> Any:
        """Run a batch forward in eval mode. The arguments, and what it returns, are those of `step`."""
        self.connect()
        planned = evaluation(self.stage.index, self.n_microbatches)
        modes = {module: module.training for module in self.stage.modules()}
        self.stage.eval()
        try:
            with torch.no_grad():
                return self._do(planned, (args, target, kwargs, None if losses is None else self.loss_fn), losses)
        finally:
            for module, mode in modes.items():
                module.training = mode

    def close(self) -> None:
        """End the training in all processes: wait until each has what others have sent, and has closed, too.

        Raises:
            PeerError: If a neighbour does not close within the timeout.
        """
        if self._connection is not None and self._connection.failure is None and not self._closed:
            self._connection.close()
        self._closed = True

    def metrics(self) -> dict[str, float]:
        """Counts since the first step: updates, bytes sent (activations upwards, gradients downwards, weights to stages
        that have copies), and the share of the time waited.

        Where synthesizers learn from the stage above: the number of its gradients, of those that came too late, and
        their mean and greatest age in microbatches. With `elastic`: the number of activations that no stage took.
        """
        none = dict.fromkeys(("bytes_up", "bytes_down", "bytes_weights"), 0)
        sent = none if self._connection is None else self._connection.bytes()
        waited = self._waited / self._total if self._total else 0.0
        learned = self.targets.metrics() if self.targets.wanted else {}
        dropped = {"dropped": self._dropped} if self.elastic else {}
        return {"updates": self.updates, **sent, "waited": waited, **learned, **dropped}

    def stop(self, error: BaseException) -> None:
        """Tell the other processes that this one stops, and why. After an error in `step` or `eval` they know it."""
        if self._connection is not None and self._connection.failure is None and not self._closed:
            self._connection.failed(error)

    def lost(self, error: Exception) -> BaseException:
        """The error to raise when a collective of torch has failed: it names the process that is gone."""
        connection, text = self._connection, f"another process is gone: {first_line(error)}"
        if connection is None or connection.failure is not None or self.elastic:
            return PeerError(text)
        return connection.failed(LinkError(text, self.stage.index))

    def connect(self) -> Connection:
        """The links with the other processes: the first call makes them, in all processes at the same time."""
        if self._closed:
            raise DniFxError("the schedule is closed: make a new one")
        if self._connection is None:
            end_backward(self.stage)
            prepare_split(self.stage, self.sync, self.group, self.replicas)
            replicas = replica_groups(self.stage, self.replicas)
            self._connection = Connection(self.group, replicas, self.timeout, self.elastic)
            try:
                self._connection.connect(self.stage, self.n_microbatches, self.sync, self.targets.wanted)
                self._shared = SharedWeights(self.stage, self._connection, self.sync, self.refresh, self.timeout)
            except BaseException as error:
                raise self._connection.failed(error) from None
        elif (failure := self._connection.failure) is not None:
            kind = PeerError if isinstance(failure, PeerError) else DniFxError
            raise kind(f"the schedule has stopped before: {first_line(failure)}")
        return self._connection

    def _set_aside(self) -> dict[nn.Parameter, Tensor]:
        """The gradients of steps before, if the training loop adds them up."""
        found = {p: p.grad for p in self.stage.parameters() if p.grad is not None}
        for parameter in found:
            parameter.grad = None
        return found

    def _do(self, planned: Sequence[Action], given: tuple[Any, ...], losses: list[Tensor] | None) -> Any:
        begin = time.perf_counter()
        connection = self.connect()
        try:
            batch = Batch(self.stage, self.n_microbatches, *given)
            for kind, k in planned:
                self._act(kind, k, batch, connection)
        except BaseException as error:
            found = connection.replicas.explained(error) if isinstance(error, RuntimeError) else error
            if isinstance(found, LinkError):
                raise connection.failed(found) from None
            connection.failed(error)
            raise
        end_backward(self.stage)  # after a run in eval mode it may have whole parameters
        self.steps += self.stage.training
        self._total += time.perf_counter() - begin
        if losses is not None:
            losses += batch.losses
        return batch.joined_outputs()

    def _act(self, kind: Kind, k: int, batch: Batch, connection: Connection) -> None:
        begin = time.perf_counter()
        match kind:
            case Kind.RECEIVE:
                self._receive(k, batch, connection)
            case Kind.SEND_TARGET:
                self._send_target(batch, connection)
            case Kind.TAKE_TARGET:
                number, *gradients = connection.targets.take()
                self._waited += time.perf_counter() - begin
                self.targets.learn(number, gradients, self.microbatches)
            case Kind.LEARN:
                while (found := connection.targets.poll()) is not None:
                    self.targets.learn(found[0], found[1:], self.microbatches)
            case Kind.RUN:
                self._run(k, batch, connection)
            case Kind.UPDATE:
                self._update()
        if kind is Kind.RECEIVE:
            self._waited += time.perf_counter() - begin

    def _run(self, k: int, batch: Batch, connection: Connection) -> None:
        connection.check()
        if not self.stage.training:
            batch.run(k, self._send, learns_below=False)
            return
        assert self._shared is not None
        self._shared.pre_run()
        with self.targets.coming_later():
            batch.run(k, self._send, learns_below=connection.learns_below)
        self.targets.keep(self.microbatches, batch.passed, batch.kept)
        self.microbatches += 1

    def _receive(self, k: int, batch: Batch, connection: Connection) -> None:
        if self.elastic and self.stage.training:
            (mode, *batch.given), batch.targets[k] = self._replay.take(connection.activations, batch.targets[k])
        else:
            mode, *batch.given = connection.activations.take()
        if mode != self.stage.training:
            below, own = ("step", "eval") if mode else ("eval", "step")
            raise DniFxError(
                f"{connection.activations.peer} runs {below}, and {connection.own} runs {own}: call them in one order "
                "in all processes"
            )

    def _send(self, values: Sequence[Any]) -> None:
        begin = time.perf_counter()
        try:
            self.connect().to_above.send([self.stage.training, *values])
        except LinkError:
            if not self.elastic:
                raise
            self._dropped += 1
        self._waited += time.perf_counter() - begin

    def _send_target(self, batch: Batch, connection: Connection) -> None:
        message = [self.microbatches - 1, *batch.gradients()]
        if self.sync:
            connection.to_below.send(message)
        else:
            connection.to_below.offer(message)  # the stage below learns from those that come

    def _update(self) -> None:
        assert self._shared is not None
        end_backward(self.stage)
        if self.sync:
            gradients = [own_part(p.grad) for p in self.stage.parameters() if p.grad is not None]
            if gradients:
                torch._foreach_div_(gradients, self.n_microbatches)
        self._shared.pre_update()
        self.connect().replicas.average([*self.stage.parameters()])
        self.updates += 1
        if self.optimizer is not None:
            self.optimizer.step()
            torch.clear_autocast_cache()  # around `step`, autocast would use the weights of before
            if not self.sync:
                self.optimizer.zero_grad()
        self._shared.post_update(self.updates)


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DniFxError(f"{name}={described(value)}: a whole number, 1 or more")


def _check_stage(stage: Any, loss_fn: Any, optimizer: Any, sync: bool) -> None:
    if not isinstance(stage, Stage):
        raise DniFxError(f"stage={described(stage)}: expected one of dni_fx.pipeline.stages(net)")
    if stage.is_last and not callable(loss_fn):
        raise DniFxError("the last stage needs loss_fn, a function of (output, target)")
    if optimizer is None and not sync:
        raise DniFxError("each microbatch updates the weights: give optimizer=, or sync=True")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise DniFxError(f"optimizer={described(optimizer)}: expected a torch optimizer of the parameters of the stage")
    parameters = {*stage.parameters()}
    if optimizer is not None and any(p not in parameters for group in optimizer.param_groups for p in group["params"]):
        where = "after fully_shard(stage)" if is_sharded(stage) else "of stage.parameters()"
        raise DniFxError(f"the optimizer has parameters that are not of stage {stage.index}: make it {where}")
    for weight in [] if sync else stage.shared:
        if len(weight.owners) > 1:
            one, other = (f"{weight.names[index]} of stage {index}" for index in weight.owners[:2])
            raise DniFxError(f"{one} and {other} are one weight: sync=True keeps it so, or cut the net elsewhere")
