"""Check this machine and, as a submitted job, every node of the cluster: `python jobs/doctor.py --root <root>`."""

import sys

from selfmoe_ray.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main())
