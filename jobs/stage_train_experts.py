"""Generate examples and train the experts."""

from selfmoe_ray.commands.run import main

if __name__ == "__main__":
    main(until="experts")
