"""Serve the newest finished run on this machine: `python jobs/serve.py`; Ctrl-C stops."""

from selfmoe_ray.serving.ray_local import main

if __name__ == "__main__":
    main()
