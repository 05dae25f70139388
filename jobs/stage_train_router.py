"""Generate, train the experts, train the router."""

from selfmoe_ray.commands.run import main

if __name__ == "__main__":
    main(until="router")
