"""Planning: the cost of actions -> actions. Search by sampling, energies to a goal, environments, and the evidence."""
