"""From seeds to a MiXSE checkpoint and its report: `python jobs/pipeline.py --config <yaml>`."""

from selfmoe_ray.commands.run import main

if __name__ == "__main__":
    main()
