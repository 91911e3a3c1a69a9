"""What a recipe's slots can hold: priors, assigners, losses. One file each."""
