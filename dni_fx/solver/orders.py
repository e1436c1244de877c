"""Topological orders to cut a graph along: what one order tears apart another may keep together."""

import heapq

import numpy as np

from dni_fx.solver.workload import FLOATING, Integers, Workload

__all__ = ["is_chain", "orders"]


def is_chain(work: Workload) -> bool:
    """Whether there is only one topological order."""
    return all(i in work.before[i + 1] for i in range(len(work.before) - 1))


def orders(work: Workload) -> list[Integers]:
    """Topological orders: the given one, depth first, and one that keeps little alive."""
    if is_chain(work):
        return [np.arange(len(work.weight))]
    return [np.arange(len(work.weight)), _depth_first(work), _narrow(work)]


def _depth_first(work: Workload) -> Integers:
    missing = [len(before) for before in work.before]
    stack = [node for node, count in reversed(list(enumerate(missing))) if count == 0]
    order = []
    while stack:
        node = stack.pop()
        order.append(node)
        for user in reversed(work.after[node]):
            missing[user] -= 1
            if missing[user] == 0:
                stack.append(user)
    return np.array(order)


def _narrow(work: Workload) -> Integers:
    """Of the nodes that are ready, always the one after which least is alive."""
    n = len(work.weight)
    takes: list[list[int]] = [[] for _ in range(n)]
    users: list[list[int]] = [[] for _ in work.cost]
    for output, user in zip(work.used.tolist(), work.user.tolist(), strict=True):
        takes[user].append(output)
        users[output].append(user)
    change = [0.0] * n
    for output, producer in enumerate(work.producer.tolist()):
        if producer != FLOATING:
            change[producer] += float(work.cost[output])
        if len(users[output]) == 1:
            change[users[output][0]] -= float(work.cost[output])
    left = [len(u) for u in users]
    missing = [len(before) for before in work.before]
    ready = [(change[node], node) for node in range(n) if missing[node] == 0]
    heapq.heapify(ready)
    order: list[int] = []
    done = [False] * n
    while ready:
        node = heapq.heappop(ready)[1]
        if done[node]:
            continue
        done[node] = True
        order.append(node)
        for output in takes[node]:
            left[output] -= 1
            if left[output] == 1:  # whoever is the last to use it frees it
                last = next(user for user in users[output] if not done[user])
                change[last] -= float(work.cost[output])
                if missing[last] == 0:
                    heapq.heappush(ready, (change[last], last))
        for user in work.after[node]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, (change[user], user))
    return np.array(order)
