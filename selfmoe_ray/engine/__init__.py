"""MiXSE inside vLLM: how many engines there are, what an engine computes, and where a request's gates went.

`plan` decides on engines and their arguments. `vllm_plugin` makes a `mixse` directory a model of vLLM's, with
`kernels` for CPUs and `shared_weights` for several engines on a node; `routing_log` hands out what the router
did. `patches` is the page of all changes to other libraries, and `orphans` ends what a killed server leaves.
"""
