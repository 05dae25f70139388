"""Tables and figures of the paper on a run of your own: `python jobs/studies.py --study table1 --run runs/demo`."""

from selfmoe_ray.commands.studies import main

if __name__ == "__main__":
    main()
