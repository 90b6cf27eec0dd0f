"""One model over several nodes, against plain llama.cpp: what a hop, a failure and a host cost."""
