"""python -m demo: the whole way, from training to figures, on a street world that is drawn here (demo.world)."""
