"""From seeds to a MiXSE checkpoint and its report: `python jobs/pipeline.py --config <yaml>`."""

from selfmoe_ray.command import main

if __name__ == "__main__":
    main()
