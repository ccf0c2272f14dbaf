"""How good, and did it help: metrics of one model, paired statistics of two, guard rails for the loop."""
