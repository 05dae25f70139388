"""What a CPU engine computes in C++, built on first use on each machine: a mixture's gates and experts, top-p."""
