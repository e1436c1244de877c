"""The order of actions: all stages together come to an end, with queues of any length, and see what they should."""

from collections import deque

import pytest

from dni_fx.pipeline.actions import Action, Kind, actions, evaluation

RECEIVES = {Kind.RECEIVE: ("up", -1), Kind.TAKE_TARGET: ("down", 1)}


def run(plans: list[list[Action]], room: int, room_down: int) -> list[tuple[int, Action]]:
    """Run the actions of all stages, each as soon as it can; a link holds so many messages. Return them in order."""
    links: dict[tuple[str, int], deque[int]] = {(way, s): deque() for way in ("up", "down") for s in range(len(plans))}
    left, done = [deque(plan) for plan in plans], []
    while any(left):
        before = len(done)
        for stage, plan in enumerate(left):
            while plan:
                kind, k = plan[0]
                sends = kind is Kind.RUN and stage < len(plans) - 1
                if sends and len(links["up", stage + 1]) == room:
                    break
                if kind is Kind.SEND_TARGET and len(links["down", stage - 1]) == room_down:
                    break
                if kind in RECEIVES:
                    waiting = links[RECEIVES[kind][0], stage]
                    if not waiting:
                        break
                    assert waiting.popleft() == k
                if sends:
                    links["up", stage + 1].append(k)
                if kind is Kind.SEND_TARGET:
                    links["down", stage - 1].append(k)
                done.append((stage, plan.popleft()))
        assert len(done) > before, "all stages wait"
    return done


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("microbatches", [1, 2, 7])
def test_in_sync_all_gradients_come_before_the_update(stages: int, microbatches: int) -> None:
    plans = [actions(stage, stages, microbatches, sync=True) for stage in range(stages)]
    done = run(plans, room=1, room_down=microbatches)
    for stage in range(stages):
        kinds = [action.kind for where, action in done if where == stage]
        assert kinds[-1] is Kind.UPDATE and kinds.count(Kind.UPDATE) == 1
        assert kinds.count(Kind.TAKE_TARGET) == (microbatches if stage < stages - 1 else 0)


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_without_sync_no_stage_waits_for_one_above(stages: int, microbatches: int) -> None:
    plans = [actions(s, stages, microbatches, sync=False, learns=True, learns_below=True) for s in range(stages)]
    assert not any(action.kind is Kind.TAKE_TARGET for plan in plans for action in plan)
    for plan in plans:  # an update after each microbatch
        assert [action.microbatch for action in plan if action.kind is Kind.UPDATE] == list(range(microbatches))
    run(plans, room=1, room_down=10**6)  # a gradient that finds no room is left out


def test_with_exits_nothing_goes_down() -> None:
    plan = actions(1, 3, 2, sync=False)
    assert [action.kind for action in plan] == 2 * [Kind.RECEIVE, Kind.RUN, Kind.UPDATE]


def test_evaluation() -> None:
    run([evaluation(stage, 4) for stage in range(3)], room=1, room_down=0)
    assert {action.kind for action in evaluation(2, 4)} == {Kind.RECEIVE, Kind.RUN}
