"""How a network is made: from photographs to a registered model, one DVC stage per door."""
