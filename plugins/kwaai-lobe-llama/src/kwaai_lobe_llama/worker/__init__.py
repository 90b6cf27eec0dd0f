"""The worker: a process of its own in which llama.cpp runs, so that it can only end itself."""
