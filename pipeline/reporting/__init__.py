"""Tables, plots, HTML gallery and contact sheets."""
