"""How `dni_fx.partition` splits a graph: what is given, the exact method on down-sets, the bounded one along orders."""
