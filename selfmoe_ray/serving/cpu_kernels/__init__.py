"""A mixture's gates and experts on a CPU as two functions of C++, built on first use on each machine."""
