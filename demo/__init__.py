"""python -m demo: the main job on an embedded default, a street world that is drawn here (demo.world)."""
