"""What computes a step: runners, samplers and pools of each kind; `choose` decides which."""
