"""Serve the newest finished run on this machine: `python jobs/serve.py`; Ctrl-C stops."""

from selfmoe_ray.commands.serve import main

if __name__ == "__main__":
    main()
