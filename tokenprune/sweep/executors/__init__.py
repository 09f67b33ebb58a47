"""Ways to run cells: in this process, in local workers, on Ray, on Slurm."""
