"""The facts of a capture in a pickle."""

import pickle

from dni_fx.model import Captured, Read, Reads


def test_a_pickle_of_an_older_version() -> None:
    captured = Captured(reads=Reads([Read("", (("attribute", "tau"),), "1.0")]), forms={"x": ((),)})
    same = pickle.loads(pickle.dumps(captured))
    assert list(same.reads) == list(captured.reads) and same.forms == {"x": ((),)}
    old = Captured.__new__(Captured)
    old.__setstate__({"original": None, "lost_checkpoints": True})
    assert old.lost_checkpoints and not old.reads and old.forms == {}
