"""One copy of a base model's weights for all engines of a node: `load_format="mixse_shared"`.

On CPUs the first engine loads the base into a file in memory; each further one, of the same mixture or of
another one over the same base, maps that file. On a GPU a daemon of vLLM holds the base, and all engines map
it. Experts and routers stay private: they are small.
"""

LOAD_FORMAT = "mixse_shared"
