"""What the command line does beside the stages of a run."""
