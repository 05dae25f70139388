"""Generate every domain's examples."""

from selfmoe_ray.commands.run import main

if __name__ == "__main__":
    main(until="generate")
