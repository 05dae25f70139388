"""Evaluate a run's systems on benchmarks: `python jobs/eval.py --run runs/demo --systems base,mixse --tasks gsm8k`."""

from selfmoe_ray.commands.eval import main

if __name__ == "__main__":
    main()
